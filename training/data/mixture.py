"""The source of each sample of a mixture: a pure function of weights, seed, stream and position, O(1).

Every stream walks the same cyclic word of PERIOD sources from an offset of its own, so any PERIOD positions in a row
hold exactly the counts that the weights give, and any fewer come within a few samples of them. The earlier
samples of a source in the stream are looked up, not counted: their number is the position in the source's own order,
in which each goes on when weights change. Knows no samples, no epochs and no tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.int64]]
Stages = Sequence[tuple[int, Sequence[float]]]  # weights, and where they begin
# Neighbouring Fibonacci numbers: steps of STRIDE around a circle of PERIOD places are spread as evenly as steps can
# be, at every moment (the golden ratio is the number that fractions approach worst).
PERIOD = 832_040
STRIDE = 514_229
# The distance of the streams (1 / plastic number): equal distances would fall in step with STRIDE for some numbers of
# streams, and drawn ones were three times as uneven in the first 1,000 samples (14 off instead of 5).
STREAM_STRIDE = 0.7548776662466927


class Mixture:
    """The source of each position of each stream, by `weights` (of any sum; of weight 0 nothing is read)."""

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
        self._own = own
        self._before = self._counted(self._starts)

    def at(self, stream: Ids, position: Ids) -> tuple[Ids, Ids]:
        """Source of each stream's `position`-th sample, and how many of that source the stream had before it."""
        turn, offset = np.divmod(self._starts[stream] + position, PERIOD)
        source: Ids = self._source[offset].astype(np.int64)
        return source, turn * self.counts[source] + self._rank[offset] - self._before[source, stream]

    def before(self, position: int) -> Ids:
        """The samples of each source among the first `position` of each stream: (sources, streams)."""
        turn, offset = np.divmod(self._starts + position, PERIOD)
        return turn * self.counts[:, None] + self._counted(offset) - self._before

    def _counted(self, offset: Ids) -> Ids:
        """The places of each source in the word before some offsets: (sources, offsets)."""
        return np.stack([np.searchsorted(of_one, offset) for of_one in self._own])


class StagedMixture:
    """A mixture whose weights change: `stages` are positions, rising from 0, and the weights from there on."""

    def __init__(self, stages: Stages, *, seed: int, n_streams: int) -> None:
        self._begins = [begin for begin, _ in stages]
        if not stages or self._begins[0] != 0 or sorted(set(self._begins)) != self._begins:
            raise ValueError(f"stages begin at {self._begins}; they rise from 0")
        if len({len(weights) for _, weights in stages}) > 1:
            raise ValueError("every stage has a weight for each source")
        self._mixtures = [Mixture(weights, seed=seed, n_streams=n_streams) for _, weights in stages]
        # Added to ranks in a stage: what each stream has read before it, less what the stage itself would have read.
        self._added = [np.zeros((len(stages[0][1]), n_streams), np.int64)]
        for number, begin in enumerate(self._begins[1:]):
            read = self._mixtures[number].before(begin) + self._added[number]
            self._added.append(read - self._mixtures[number + 1].before(begin))

    def at(self, stream: Ids, position: Ids) -> tuple[Ids, Ids]:
        """Source of each stream's `position`-th sample, and how many of that source the stream had before it."""
        if len(self._mixtures) == 1:
            return self._mixtures[0].at(stream, position)
        stage = np.searchsorted(self._begins, position, side="right") - 1
        source = np.empty_like(position)
        rank = np.empty_like(position)
        for number in np.unique(stage).tolist():
            of_it = stage == number
            found, own = self._mixtures[number].at(stream[of_it], position[of_it])
            source[of_it] = found
            rank[of_it] = own + self._added[number][found, stream[of_it]]
        return source, rank

    def before(self, position: int) -> Ids:
        """The samples of each source among the first `position` of each stream: (sources, streams)."""
        number = bisect_right(self._begins, position) - 1
        return self._mixtures[number].before(position) + self._added[number]


def counts_of(weights: Sequence[float]) -> Ids:
    """The number of PERIOD positions for each source: integers by the largest remainders, 0 for a weight of 0."""
    share = np.asarray(weights, dtype=np.float64)
    if share.ndim != 1 or not (np.isfinite(share) & (share >= 0)).all() or not (share > 0).any():
        raise ValueError(f"weights {list(weights)}: a mixture needs weights above zero")
    share = share / share.sum() * PERIOD
    counts: Ids = share.astype(np.int64)
    counts[np.argsort(counts - share, kind="stable")[: PERIOD - counts.sum()]] += 1
    if (counts[share > 0] == 0).any():
        raise ValueError(f"weights {list(weights)}: each but 0 must be at least 1/{PERIOD:,} of their sum")
    return counts
