"""Being asked to stop: signals and a flag file set a flag, and all ranks agree at the next step boundary.

Handlers only set the flag: saving, or any collective, inside a handler deadlocks sooner or later.
"""

from __future__ import annotations

import json
import os
import signal
import time
from types import FrameType

# Reasons, in the order in which a heavier one wins when several arrive at once.
REASONS = ("stop", "terminated", "time limit", "preempted")
# TERM to a worker itself means that its node is being reclaimed; its agent decides if the run ends.
BY_SIGNAL = {
    signal.SIGTERM: "preempted",
    signal.SIGINT: "stop",
    signal.SIGUSR1: "preempted",
    signal.SIGUSR2: "preempted",
}
EARLY_SECONDS = 60.0  # a scheduler's warning of the time limit comes by so much before the time it was asked for


class StopFlag:
    """Stop requests to this rank. `votes()` is its part of the agreement."""

    def __init__(self, scratch: str | None, job_end: float | None = None) -> None:
        self._file = os.path.join(scratch, "stop") if scratch else None
        self._job_end = job_end
        self._reason: str | None = None
        self.requested_at: float | None = None  # when, by the monotonic clock

    def install(self) -> None:
        for number in BY_SIGNAL:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested_at = self.requested_at or time.monotonic()
        self._reason = self._reason or self._named(BY_SIGNAL[signal.Signals(number)])

    def _named(self, reason: str) -> str:
        """A warning near the end of the job is about that end; it comes as the same signal as a preemption's."""
        near = self._job_end is not None and time.time() >= self._job_end - EARLY_SECONDS
        return "time limit" if near and reason == "preempted" else reason

    def request(self, reason: str) -> None:
        """Asks for a stop from within the process, one of REASONS; the first one counts."""
        self.requested_at = self.requested_at or time.monotonic()
        self._reason = self._reason or reason

    def reason(self) -> str | None:
        """The reason for which this rank must stop, or None. Costs one stat()."""
        reason = self._update()
        if reason is not None and self.requested_at is None:
            self.requested_at = time.monotonic()
        return reason

    def _update(self) -> str | None:
        if self._reason is None and self._file is not None and os.path.exists(self._file):
            self._reason = self._named(self._read_file())
        if self._reason is None and self._job_end is not None and time.time() >= self._job_end:
            self._reason = "time limit"
        return self._reason

    def _read_file(self) -> str:
        assert self._file is not None
        try:
            with open(self._file) as file:
                reason = str(json.load(file).get("reason", "stop"))
        except (OSError, ValueError):
            reason = "stop"
        return reason if reason in REASONS else "stop"

    def votes(self) -> list[int]:
        """One 0 or 1 a reason, to be summed over ranks."""
        mine = self.reason()
        return [int(reason == mine) for reason in REASONS]


def agreed_reason(votes: list[int]) -> str | None:
    """The reason that all ranks take from the summed votes."""
    requested = [reason for reason, count in zip(REASONS, votes, strict=True) if count]
    return requested[-1] if requested else None
