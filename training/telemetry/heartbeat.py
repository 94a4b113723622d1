"""Signs of life: the present state of each worker, in a small file that its node's agent reads without any request.

A worker writes into mapped memory (no system call, no lock); a stopped or dead-locked one simply stops writing. The
hung ranks, and those that wait for them, follow from these signs alone, by a pure function. Light; sends no signal.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import signal
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from launchyard.training.telemetry.phases import PHASES

STACKS = signal.SIGQUIT  # asks a worker for the stacks of all its threads, in its log; kill -QUIT does it by hand
FLOOR_SECONDS = 45.0  # a step may always take so long
TIMES_MEDIAN = 10.0
SLOW_PHASES = ("init", "checkpoint_blocking", "validation")
WINDOW_STEPS = 32
_LAYOUT = struct.Struct("<8q4d")
_MAGIC = 0x6C61756E6368


@dataclass(frozen=True)
class Pulse:
    """A worker's last sign. Times are of the machine's monotonic clock; limits in seconds, 0: none."""

    rank: int
    pid: int
    phase: str
    step: int  # finished steps
    waiting: bool  # for other ranks, or for its device
    collectives: int  # that it has entered
    beat: float  # when it last gave a sign
    since: float  # when the phase began
    limit: float  # from `beat`
    phase_limit: float  # from `since`

    def overdue(self, now: float) -> bool:
        return 0 < self.limit < now - self.beat or 0 < self.phase_limit < now - self.since


class Limits:
    """The time limits for a sign of life: in a step from the durations of earlier steps; elsewhere from the recipe."""

    def __init__(self, *, step_seconds: float | None, slow_seconds: float, retry_seconds: float = 0.0) -> None:
        """`retry_seconds`: retry budget of a store that does not answer; a rank that waits for one is not hung."""
        self._fixed = step_seconds
        self.slow = max(slow_seconds, 3 * retry_seconds)
        self._steps: list[float] = []
        self._count = 0
        self.step = self.slow  # the first step may compile

    def add_step(self, seconds: float) -> None:
        """A step was done in that time."""
        self._count += 1
        if len(self._steps) < WINDOW_STEPS:
            self._steps.append(seconds)
        else:
            self._steps[self._count % WINDOW_STEPS] = seconds
        if self._count <= 3 or self._count % 16 == 0:  # a median costs more than all the rest
            self.step = self._fixed or max(FLOOR_SECONDS, TIMES_MEDIAN * median(self._steps))

    def of(self, phase: str) -> tuple[float, float]:
        """(seconds from the last sign, seconds from the phase's beginning)."""
        if phase in SLOW_PHASES:
            return self.slow, self.slow
        return self.step, self.slow if phase == "data_wait" else self.step


class PulseWriter:
    """This worker's file. Every call costs well under a microsecond; the kernel does the rest."""

    def __init__(self, scratch: str, rank: int, limits: Limits | None) -> None:
        """`limits` None: signs are written, and no rank counts as hung."""
        self._file = os.path.join(scratch, f"pulse-{rank:05d}")
        with open(self._file, "wb+") as file:
            file.truncate(_LAYOUT.size)
            self._map = mmap.mmap(file.fileno(), _LAYOUT.size)
        self.limits = limits
        self._rank = rank
        self._pid = os.getpid()
        self._step = 0
        self._collectives = 0
        self._phase = 0
        self._since = time.monotonic()
        self._waiting = False
        self._writes = 0
        self._write(self._since)

    def enter(self, phase: str, now: float, waiting: bool) -> None:
        self._phase = PHASES.index(phase)
        self._since = now
        self._waiting = waiting
        self._collectives += waiting
        self._write(now)

    def beat(self) -> None:
        """Alive, in the same phase."""
        self._write(time.monotonic())

    def stepped(self, step: int, seconds: float) -> None:
        self._step = step
        if self.limits is not None:
            self.limits.add_step(seconds)

    def _write(self, now: float) -> None:
        limit, phase_limit = self.limits.of(PHASES[self._phase]) if self.limits is not None else (0.0, 0.0)
        self._writes += 1
        _LAYOUT.pack_into(
            self._map, 0, _MAGIC, self._writes, self._rank, self._pid, self._phase, self._step, self._waiting,
            self._collectives, now, self._since, limit, phase_limit,
        )  # fmt: skip

    def close(self) -> None:
        """A worker that leaves is not hung."""
        with contextlib.suppress(OSError):
            os.unlink(self._file)


def dump_stacks_on_signal() -> None:
    """On STACKS, print the Python stacks of all threads to stderr: in C, without the interpreter's lock."""
    faulthandler.enable()  # on a crash as well
    faulthandler.register(STACKS, all_threads=True, chain=False)


def read_pulses(scratch: str) -> list[Pulse]:
    """The last signs of this node's workers, by rank."""
    found = []
    for name in sorted(os.listdir(scratch)):
        if name.startswith("pulse-") and (pulse := _read(os.path.join(scratch, name))) is not None:
            found.append(pulse)
    return found


def _read(path: str) -> Pulse | None:
    """None if it is gone, or was written in this very moment."""
    try:
        with open(path, "rb") as file:
            raw = file.read(_LAYOUT.size)
            file.seek(0)
            if len(raw) < _LAYOUT.size or file.read(_LAYOUT.size) != raw:
                return None
    except OSError:
        return None
    magic, _, rank, pid, phase, step, waiting, collectives, beat, since, limit, phase_limit = _LAYOUT.unpack(raw)
    if magic != _MAGIC:
        return None
    return Pulse(rank, pid, PHASES[phase], step, bool(waiting), collectives, beat, since, limit, phase_limit)


@dataclass(frozen=True)
class HangReport:
    """`hung`: the ranks that hold up the others. Empty where all wait: then none here does, or all of them together."""

    hung: tuple[Pulse, ...]
    all_wait: bool = False


def find_hang(pulses: Sequence[Pulse], now: float, *, stopped: Sequence[int] = ()) -> HangReport | None:
    """Returns the hung ranks; None if there are none. `stopped`: ranks whose process has been stopped for a while.

    Of the overdue ranks, those that wait for others are victims.
    """
    overdue = [pulse for pulse in pulses if pulse.overdue(now) or pulse.rank in stopped]
    if not overdue:
        return None
    culprits = [pulse for pulse in overdue if not pulse.waiting or pulse.rank in stopped]
    if culprits:
        return HangReport(tuple(culprits))
    if len(overdue) < len(pulses):  # a rank works, and is within its limit
        return None
    behind = min(pulse.collectives for pulse in overdue)
    if any(pulse.collectives > behind for pulse in overdue):  # others are in a later one: they wait for these
        return HangReport(tuple(pulse for pulse in overdue if pulse.collectives == behind), all_wait=True)
    return HangReport((), all_wait=True)
