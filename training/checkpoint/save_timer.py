"""The clock of saves that are due by time. Knows no checkpoint."""

from __future__ import annotations

import math
import time


class SaveTimer:
    """Rank 0's clock for temporary checkpoints; other ranks have none and follow."""

    def __init__(self, every_minutes: float | None) -> None:
        self._every = every_minutes * 60 if every_minutes is not None else math.inf
        self.reset()

    def reset(self) -> None:
        self._since = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._since >= self._every


class Stopwatch:
    """Seconds since it was made, on top of those before."""

    def __init__(self, before: float) -> None:
        self._began = time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began
