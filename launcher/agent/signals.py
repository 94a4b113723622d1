"""Requests by signals to a process that owns a run or a node of it, and lines in its own log."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from typing import Any

from launchyard.launcher.format import clock
from launchyard.storage import retry

CANCELLED = "cancelled"
POLL_SECONDS = 0.1
STOPPING_SECONDS = 5.0  # retry budget once a signal has asked this process to end


class Signals:
    """Requests that this process has received by signals. The handlers only set fields, which others poll."""

    def __init__(self, *, term_is_notice: bool = False) -> None:
        """`term_is_notice`: the scheduler sends TERM to take the node away, not to end the run."""
        self.stop: str | None = None
        self.preempted = False
        self._notices = {signal.SIGUSR1, signal.SIGUSR2} | ({signal.SIGTERM} if term_is_notice else set())
        self._reasons = {signal.SIGTERM: "terminated", signal.SIGINT: "stop"}

    def install(self) -> None:
        for number in self._reasons:
            signal.signal(number, self._on_stop)
        for number in self._notices:
            signal.signal(number, self._on_notice)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_stop(self, number: int, frame: Any) -> None:
        self.stop = self.stop or self._reasons[signal.Signals(number)]
        # No scheduler waits as long as a run would.
        retry.set_retry_budget(min(STOPPING_SECONDS, retry.current_retry_budget()))

    def _on_notice(self, number: int, frame: Any) -> None:
        self.preempted = True

    def reason(self) -> str | None:
        return self.stop or ("preempted" if self.preempted else None)


def log_line(text: str) -> None:
    """Prints a line with the time to this process's own log."""
    with contextlib.suppress(OSError):  # a full disk
        print(f"{clock(time.time())} {text}", file=sys.stderr, flush=True)
