"""The clocks of saves and of copies in memory that are due by time. Knows no checkpoint."""

from __future__ import annotations

import math
import time

COST_SHARE = 0.004  # of the time of the steps, at most, that copies in memory hold them up
LEAST_PAUSE = 1.0  # seconds between two of them: less would save nobody anything


class SaveTimer:
    """Rank 0's clock for temporary checkpoints; other ranks have none and follow."""

    def __init__(self, every_minutes: float | None) -> None:
        self._every = every_minutes * 60 if every_minutes is not None else math.inf
        self.reset()

    def reset(self) -> None:
        self._since = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._since >= self._every


class SnapshotTimer:
    """Rank 0's clock for copies in memory: every so many steps; None: as often as costs next to nothing."""

    def __init__(self, every_steps: int | None) -> None:
        self._every = every_steps
        self._pause = LEAST_PAUSE
        self._since = time.monotonic()

    def due(self, step: int) -> bool:
        if self._every is not None:
            return step > 0 and step % self._every == 0
        return step > 0 and time.monotonic() - self._since >= self._pause

    def taken(self, seconds: float) -> None:
        """A copy has just held up training for so long."""
        self._since = time.monotonic()
        self._pause = max(LEAST_PAUSE, seconds / COST_SHARE)


class Stopwatch:
    """Seconds since it was made, on top of those before."""

    def __init__(self, before: float) -> None:
        self._began = time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began
