"""Ranks that compute more slowly than the others. Steps take equally long on all of them, for each waits for the last;
so their own compute times are compared, without any wait. Light and pure; knows no collectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

EVERY_STEPS = 10
SLOW = 1.3  # times the median: from here on slow
WELL = 1.15  # recovered below
IN_A_ROW = 3  # updates that must agree
LEAST_SECONDS = 0.005  # a step's compute, below which the ratio is noise


@dataclass(frozen=True)
class Straggler:
    """`slow` False: it has recovered. Seconds are of a step, its own and the median's."""

    rank: int
    slow: bool
    ratio: float
    seconds: float
    median_seconds: float


class Stragglers:
    """Compares the compute times of all ranks, every EVERY_STEPS steps."""

    def __init__(self) -> None:
        self._streaks: dict[int, int] = {}
        self._slow: set[int] = set()
        self.ratios: list[float] = []

    def update(self, seconds: Sequence[float]) -> list[Straggler]:
        """Returns the ranks that became slow or recovered. `seconds`: of a step, by rank."""
        usual = median_low(seconds)
        told = max(seconds) >= LEAST_SECONDS
        self.ratios = [value / usual if told and usual > 0 else 1.0 for value in seconds]
        if len(seconds) < 2 or not told:
            return []
        return [
            Straggler(rank, rank in self._slow, ratio, seconds[rank], usual)
            for rank, ratio in enumerate(self.ratios)
            if self._changed(rank, ratio)
        ]

    def _changed(self, rank: int, ratio: float) -> bool:
        against = ratio < WELL if rank in self._slow else ratio > SLOW
        self._streaks[rank] = self._streaks.get(rank, 0) + 1 if against else 0
        if self._streaks[rank] < IN_A_ROW:
            return False
        self._streaks[rank] = 0
        self._slow ^= {rank}
        return True
