"""The source of each sample of a mixture: a pure function of weights, seed, stream and position, O(1).

Every stream walks the same cyclic word of PERIOD sources from an offset of its own, so any PERIOD positions in a row
hold exactly the counts that the weights give, and any fewer come within a few samples of them. The earlier
samples of a source in the stream are looked up, not counted: their number is the position in the source's own order.
Knows no samples, no epochs and no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.int64]]
# Neighbouring Fibonacci numbers: steps of STRIDE around a circle of PERIOD places are spread as evenly as steps can
# be, at every moment (the golden ratio is the number that fractions approach worst).
PERIOD = 832_040
STRIDE = 514_229
# The distance of the streams (1 / plastic number): equal distances would fall in step with STRIDE for some numbers of
# streams, and drawn ones were three times as uneven in the first 1,000 samples (14 off instead of 5).
STREAM_STRIDE = 0.7548776662466927


class Mixture:
    """The source of each position of each stream, by `weights` (positive, of any sum)."""

    def __init__(self, weights: Sequence[float], *, seed: int, n_streams: int) -> None:
        self.counts = counts_of(weights)
        value = STRIDE * np.arange(PERIOD, dtype=np.int64) % PERIOD
        source = np.searchsorted(np.cumsum(self.counts), value, side="right").astype(np.int16)
        positions = np.argsort(source, kind="stable")  # those of the first source in order, then of the second …
        rank = np.empty(PERIOD, np.int32)
        rank[positions] = np.concatenate([np.arange(count) for count in self.counts])
        self._source = source
        self._rank = rank
        shift = (np.arange(n_streams) * STREAM_STRIDE % 1 * PERIOD).astype(np.int64) * pow(STRIDE, -1, PERIOD)
        self._starts = (seed + shift) % PERIOD
        own = np.split(positions, np.cumsum(self.counts)[:-1])
        self._before = np.stack([np.searchsorted(of_one, self._starts) for of_one in own])  # (sources, streams)

    def at(self, stream: Ids, position: Ids) -> tuple[Ids, Ids]:
        """Source of each stream's `position`-th sample, and how many of that source the stream had before it."""
        turn, offset = np.divmod(self._starts[stream] + position, PERIOD)
        source: Ids = self._source[offset].astype(np.int64)
        return source, turn * self.counts[source] + self._rank[offset] - self._before[source, stream]


def counts_of(weights: Sequence[float]) -> Ids:
    """The number of PERIOD positions for each source: integers by the largest remainders. ValueError for zero."""
    share = np.asarray(weights, dtype=np.float64)
    if share.ndim != 1 or not len(share) or not (np.isfinite(share) & (share > 0)).all():
        raise ValueError(f"weights {list(weights)}: a mixture needs weights above zero")
    share = share / share.sum() * PERIOD
    counts: Ids = share.astype(np.int64)
    counts[np.argsort(counts - share, kind="stable")[: PERIOD - counts.sum()]] += 1
    if not counts.all():
        raise ValueError(f"weights {list(weights)}: each must be at least 1/{PERIOD:,} of their sum")
    return counts
