"""Losses that stand out from those before. Light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spike:
    """A loss far above the running mean of those before it; `in_a_row` counts consecutive ones."""

    loss: float
    usual: float
    in_a_row: int


@dataclass
class UsualLoss:
    """The running mean of the losses so far, and of their distances from it, over about `window` of them."""

    factor: float = 6.0
    window: int = 20
    mean: float = 0.0
    distance: float = 0.0
    count: int = 0

    @classmethod
    def from_json(cls, raw: Sequence[float], *, factor: float, window: int) -> UsualLoss:
        """From the numbers that `to_json` gave; none: nothing was learnt yet."""
        mean, distance, count = raw or (0.0, 0.0, 0)
        return cls(factor, window, mean, distance, int(count))

    def to_json(self) -> list[float]:
        return [self.mean, self.distance, self.count]

    @property
    def ready(self) -> bool:
        return self.count > self.window

    def is_far_below(self, loss: float) -> bool:
        """A spike: above the mean by `factor` times the usual distance from it, and by a tenth of it."""
        return self.ready and loss - self.mean > max(self.factor * self.distance, 0.1 * abs(self.mean))

    def learn(self, loss: float) -> None:
        above = loss - self.mean
        self.count = self.count + 1
        memory = 1 - 1 / self.window
        share = 1 - memory if self.count > 1 else 1.0
        self.mean += share * above
        self.distance += (1 - memory) * (abs(above) * (self.count > 1) - self.distance)


class SpikeFinder:
    """Detects the spikes of a series. After NEW_USUAL in a row the loss has stayed there, and is the usual one."""

    NEW_USUAL = 10

    def __init__(self) -> None:
        self._usual = UsualLoss()
        self._in_a_row = 0

    def update(self, loss: float) -> Spike | None:
        if not self._usual.is_far_below(loss):
            self._in_a_row = 0
            self._usual.learn(loss)
            return None
        self._in_a_row += 1
        found = Spike(loss, self._usual.mean, self._in_a_row)
        if self._in_a_row == self.NEW_USUAL:
            self._usual = UsualLoss(mean=loss, count=1)
            self._in_a_row = 0
        return found  # not averaged in: a spike must not hide the next one
