"""Rows of two runs, step by step: until where they are equal to the bit, and how far apart they are from there on.

Where steps hold other numbers of tokens, losses are compared at equal tokens instead. Knows rows alone.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from launchyard.storage.damage import JsonObject

AnyRow = Mapping[str, object]
COMPARED = ("data_hash", "lr", "loss", "grad_norm")
APART = 0.01  # nats: two losses that far from each other are no matter of rounding
TAIL = 10  # a mean is taken over the last tenth


@dataclass(frozen=True)
class Gap:
    """The distance of one curve from another, second minus first, in nats. `at`: steps or tokens.

    `first`, `at_first`: where they part; `apart`: from where they differ by more than APART.
    """

    first: float
    at_first: float
    apart: float | None
    largest: float
    at_largest: float
    last: float
    at_last: float
    mean_last: float


@dataclass(frozen=True)
class Comparison:
    """One run against the first one. `first_different`: the first step that differs, None for figures that never do."""

    aligned_by: Literal["step", "tokens"]
    last_common_step: int
    first_different: dict[str, int | None]
    loss: Gap | None
    validation: Gap | None

    @property
    def equal_until(self) -> int:
        """The last step up to which every common loss has the same bits; 0 if the first differs."""
        first = self.first_different["loss"]
        return self.last_common_step if first is None else first - 1

    @property
    def differs(self) -> bool:
        parted = any(step is not None for step in self.first_different.values())
        return parted or self.aligned_by == "tokens" or self.validation is not None

    def to_json(self) -> JsonObject:
        return {**asdict(self), "equal_until": self.equal_until, "differs": self.differs}


def compare_rows(
    first: Iterable[AnyRow],
    second: Iterable[AnyRow],
    *,
    validations: tuple[Iterable[AnyRow], Iterable[AnyRow]] = ((), ()),
) -> Comparison:
    """The surviving rows of two runs, in order; steps that only one has are left out. None is kept, and where losses
    are compared at equal tokens they are read once more.
    """
    pairs = _Pairs()
    gap = _GapFinder()
    for a, b in _common(first, second):
        pairs.add(a, b)
        gap.add(_number(a["step"]), _number(a["loss"]), _number(b["loss"]))
    return Comparison(
        aligned_by="tokens" if pairs.by_tokens else "step",
        last_common_step=pairs.last,
        first_different=pairs.first_different,
        loss=_gap(_at_tokens(first, second)) if pairs.by_tokens else gap.found,
        validation=_gap((_number(a["step"]), _number(a["loss"]), _number(b["loss"])) for a, b in _common(*validations)),
    )


def _common(first: Iterable[AnyRow], second: Iterable[AnyRow]) -> Iterator[tuple[AnyRow, AnyRow]]:
    """Rows of the same step, and of the same set where they are of validations."""
    others = iter(second)
    other = next(others, None)
    for row in first:
        while other is not None and _place(other) < _place(row):
            other = next(others, None)
        if other is not None and _place(other) == _place(row):
            yield row, other


def _place(row: AnyRow) -> tuple[float, str]:
    return _number(row["step"]), str(row.get("set") or "")


class _Pairs:
    """Where pairs of rows first differ. A row that lacks a figure says nothing about it."""

    def __init__(self) -> None:
        self.last = 0
        self.by_tokens = False
        self.first_different: dict[str, int | None] = dict.fromkeys(COMPARED)

    def add(self, a: AnyRow, b: AnyRow) -> None:
        self.last = int(_number(a["step"]))
        self.by_tokens = self.by_tokens or a.get("tokens_seen") != b.get("tokens_seen")
        for name, at in self.first_different.items():
            if at is None and name in a and name in b and not _alike(a[name], b[name]):
                self.first_different[name] = self.last


def _alike(a: object, b: object) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _at_tokens(first: Iterable[AnyRow], second: Iterable[AnyRow]) -> Iterator[tuple[float, float, float]]:
    """(tokens, loss, other loss) wherever the first has a step, the other loss on a straight line between two steps."""
    places = array("d")
    losses = array("d")
    for row in second:
        places.append(_number(row["tokens_seen"]))
        losses.append(_number(row["loss"]))
    for row in first:
        tokens = _number(row["tokens_seen"])
        after = bisect_right(places, tokens)
        if after and places[after - 1] == tokens:
            yield tokens, _number(row["loss"]), losses[after - 1]
        elif 0 < after < len(places):
            share = (tokens - places[after - 1]) / (places[after] - places[after - 1])
            low, high = losses[after - 1], losses[after]
            yield tokens, _number(row["loss"]), low + share * (high - low)


def _gap(points: Iterable[tuple[float, float, float]]) -> Gap | None:
    finder = _GapFinder()
    for x, a, b in points:
        finder.add(x, a, b)
    return finder.found


class _GapFinder:
    """Takes points one after the other; keeps the distances alone."""

    def __init__(self) -> None:
        self._gaps = array("d")
        self._parted: tuple[float, float] | None = None
        self._apart: float | None = None
        self._largest = (0.0, math.nan)
        self._last = math.nan

    def add(self, x: float, a: float, b: float) -> None:
        if not (math.isfinite(a) and math.isfinite(b)):
            return
        gap = b - a
        self._gaps.append(gap)
        self._last = x
        if gap and self._parted is None:
            self._parted = (x, gap)
        if abs(gap) > APART and self._apart is None:
            self._apart = x
        if abs(gap) > abs(self._largest[0]):
            self._largest = (gap, x)

    @property
    def found(self) -> Gap | None:
        """None if they never differ, or nothing is common."""
        if self._parted is None:
            return None
        tail = self._gaps[-max(1, len(self._gaps) // TAIL) :]
        return Gap(
            first=self._parted[1],
            at_first=self._parted[0],
            apart=self._apart,
            largest=self._largest[0],
            at_largest=self._largest[1],
            last=self._gaps[-1],
            at_last=self._last,
            mean_last=math.fsum(tail) / len(tail),
        )
