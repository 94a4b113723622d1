"""Losses that stand out from those before. Light."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spike:
    """A loss far above the running mean of those before it; `in_a_row` counts consecutive ones."""

    loss: float
    usual: float
    in_a_row: int


class SpikeFinder:
    """Detects a loss spike: above the running mean by six times the usual distance from it, and by a tenth of it."""

    WARMUP_STEPS = 20
    MEMORY = 0.95
    NEW_USUAL = 10

    def __init__(self) -> None:
        self._mean = 0.0
        self._distance = 0.0
        self._count = 0
        self._in_a_row = 0

    def update(self, loss: float) -> Spike | None:
        above = loss - self._mean
        if self._count > self.WARMUP_STEPS and above > max(6 * self._distance, 0.1 * abs(self._mean)):
            self._in_a_row += 1
            found = Spike(loss, self._mean, self._in_a_row)
            if self._in_a_row == self.NEW_USUAL:  # it stays there: no spike any more
                self._mean = loss
                self._distance = 0.0
                self._count = 1
                self._in_a_row = 0
            return found  # not averaged in: a spike must not hide the next one
        self._count = self._count + 1
        self._in_a_row = 0
        share = 1 - self.MEMORY if self._count > 1 else 1.0
        self._mean += share * above
        self._distance += (1 - self.MEMORY) * (abs(above) * (self._count > 1) - self._distance)
        return None
