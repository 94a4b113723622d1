"""The clock of phases: assigns every second of a worker's wall time to one phase. Light."""

from __future__ import annotations

import time
from typing import Protocol

PHASES = (
    "init",
    "data_wait",
    "forward_backward",
    "collective_wait",
    "optimizer",
    "checkpoint_blocking",
    "validation",
    "other",
)
OF_A_STEP = ("forward_backward", "optimizer", "other")


class PhaseObserver(Protocol):
    """Receives the phases of a worker; see training/telemetry/heartbeat.py."""

    def enter(self, phase: str, now: float, waiting: bool) -> None: ...
    def beat(self) -> None: ...
    def stepped(self, step: int, seconds: float) -> None: ...


class PhaseRanges(Protocol):
    """Shows phases where a step is traced; see training/profile/ranges.py. Told by the thread that trains alone."""

    def switch(self, phase: str) -> None: ...
    def push(self, phase: str) -> None: ...
    def pop(self) -> None: ...


class PhaseClock:
    """Wall time by phase. There is always exactly one phase, so the phases sum to the time since the start."""

    def __init__(self, started: float | None = None, observer: PhaseObserver | None = None) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._now = ("init", time.monotonic())  # replaced as one, for other threads
        self.observer = observer
        self.ranges: PhaseRanges | None = None  # while a step is traced
        self._reported = dict.fromkeys(PHASES, 0.0)
        if started is not None:  # the process began before this clock could
            self.seconds["init"] = max(0.0, time.time() - started)

    @property
    def phase(self) -> str:
        return self._now[0]

    def enter(self, phase: str, *, waiting: bool = False) -> None:
        """`waiting`: for other ranks, or for the device; whatever is late then, it is not this process."""
        self._switch(phase, waiting or phase == "collective_wait")
        if self.ranges is not None:
            self.ranges.switch(phase)

    def _switch(self, phase: str, waiting: bool) -> None:
        now = time.monotonic()
        before, since = self._now
        self._now = (phase, now)  # first: another thread may then see too little for a moment, and never too much
        self.seconds[before] += now - since
        if self.observer is not None:
            self.observer.enter(phase, now, waiting)

    def beat(self) -> None:
        """A sign of life from within a long phase."""
        if self.observer is not None:
            self.observer.beat()

    def waits(self) -> Waiting:
        """In a collective: that time of a step is no rank's own. Phases outside a step keep their name."""
        return Waiting(self)

    def so_far(self) -> dict[str, float]:
        """Seconds by phase until now; for another thread."""
        while True:
            now = self._now
            seconds = dict(self.seconds)
            if now is self._now:
                seconds[now[0]] += max(0.0, time.monotonic() - now[1])
                return seconds

    def total(self) -> float:
        self.enter(self.phase)
        return sum(self.seconds.values())

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap of the phases that took any, in whole microseconds that sum to the truth."""
        self.total()
        reported = self._reported
        laps = {}
        for phase, seconds in self.seconds.items():
            if seconds - reported[phase] > 1e-6:
                laps[phase] = spent = round(seconds - reported[phase], 6)
                reported[phase] += spent
        return laps


class Waiting:
    """From entering it to leaving it, a clock knows that its rank waits for others."""

    __slots__ = ("_before", "_clock")

    def __init__(self, clock: PhaseClock) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        self._before = before = self._clock.phase
        waiting = "collective_wait" if before in OF_A_STEP else before
        self._clock._switch(waiting, True)
        if self._clock.ranges is not None:
            self._clock.ranges.push(waiting)

    def __exit__(self, *_: object) -> None:
        self._clock._switch(self._before, False)
        if self._clock.ranges is not None:
            self._clock.ranges.pop()
