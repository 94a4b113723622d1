"""Lengths of any number of documents in a few kilobytes: counts in buckets, each a 32nd of an octave wide.

Knows no text and no tokens.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

EXACT = 32  # lengths below it have a bucket each
PERCENTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class LengthSummary:
    """Percentiles are right to 3 percent; the rest is exact. `longer`: documents of more than `limit`."""

    unit: str
    documents: int
    total: int
    shortest: int
    longest: int
    percentiles: dict[str, int]
    histogram: list[tuple[int, int, int]]  # from, below, documents
    limit: int | None = None
    longer: int | None = None


class LengthTally:
    """Adds lengths one by one."""

    def __init__(self, unit: str, *, limit: int | None = None) -> None:
        self._unit = unit
        self._limit = limit
        self._buckets: Counter[int] = Counter()
        self._total = 0
        self._longer = 0
        self._shortest: int | None = None
        self._longest = 0

    def add(self, length: int) -> None:
        self._buckets[_bucket(length)] += 1
        self._total += length
        self._longer += self._limit is not None and length > self._limit
        self._shortest = length if self._shortest is None else min(self._shortest, length)
        self._longest = max(self._longest, length)

    def summary(self) -> LengthSummary:
        return LengthSummary(
            unit=self._unit,
            documents=self._buckets.total(),
            total=self._total,
            shortest=self._shortest or 0,
            longest=self._longest,
            percentiles={f"{mark:.0%}": self._percentile(mark) for mark in PERCENTILES} if self._buckets else {},
            histogram=self._histogram(),
            limit=self._limit,
            longer=None if self._limit is None else self._longer,
        )

    def _percentile(self, mark: float) -> int:
        wanted = mark * self._buckets.total()
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return max(self._shortest or 0, min(_start(bucket), self._longest))
        return self._longest

    def _histogram(self) -> list[tuple[int, int, int]]:
        """Documents by powers of two."""
        octaves: Counter[int] = Counter()
        for bucket, n in self._buckets.items():
            octaves[_start(bucket).bit_length()] += n
        if not octaves:
            return []
        return [(1 << octave >> 1, 1 << octave, octaves[octave]) for octave in range(min(octaves), max(octaves) + 1)]


def _bucket(length: int) -> int:
    if length < EXACT:
        return length
    shift = length.bit_length() - EXACT.bit_length()
    return EXACT * shift + (length >> shift)


def _start(bucket: int) -> int:
    """The least length of a bucket."""
    if bucket < EXACT:
        return bucket
    shift = bucket // EXACT - 1
    return (bucket - EXACT * shift) << shift
