"""Requests to a run that trains inside another program: signals of its terminal, and files of its run directory.

Asking only sets a flag, which the loop reads between two steps. Knows no recipe and no torch.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from launchyard.launcher.agent.owner import ASK_SECONDS
from launchyard.launcher.agent.signals import CANCELLED
from launchyard.run.rundir import RunDir

if TYPE_CHECKING:
    from launchyard.training.stop import StopFlag

POLL_SECONDS = 0.1


class CancelledError(Exception):
    """The run is to end now, without a save."""


class TrainingRequests:
    """What a run is asked while it trains here. `cancelled`: it is to end without a save; `terminated`: so is all."""

    def __init__(self, run: RunDir, attempt: int, flag: StopFlag) -> None:
        self._run = run
        self._attempt = attempt
        self._flag = flag
        self.cancelled = False
        self.terminated = False

    def check(self) -> None:
        """CancelledError if the run is to end now."""
        if self.cancelled:
            raise CancelledError("cancelled, nothing was saved")

    def read(self) -> None:
        """Reads the files by which `launch stop`, `cancel` and `drill` ask."""
        from launchyard.training.stop import REASONS

        request = self._run.stop_requested()
        if request is not None:
            reason = str(request.get("reason", "stop"))
            self.cancelled = self.cancelled or reason == CANCELLED
            self._flag.request(reason if reason in REASONS else "stop")
        elif self._run.notice(self._attempt) is not None:
            self._flag.request("preempted")

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Ctrl-C: save and stop; a second one raises KeyboardInterrupt. TERM: the same. USR1: save, then go on.

        Only where Python handles signals at all, in its main thread; their handlers before are there again afterwards.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._flag.requested_at is not None:
            self.cancelled = True
            raise KeyboardInterrupt
        self.terminated = self.terminated or number == signal.SIGTERM
        reasons = {signal.SIGINT: "stop", signal.SIGTERM: "terminated", signal.SIGUSR1: "preempted"}
        self._flag.request(reasons[signal.Signals(number)])


@contextmanager
def watched(run: RunDir, requests: TrainingRequests, on_poll: Callable[[], None]) -> Iterator[None]:
    """Reads requests now and then, and calls `on_poll` several times a second, in a thread of its own."""
    over = threading.Event()
    reading = run.periodic(requests.read, every=ASK_SECONDS[run.local])

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            reading.poll()
            on_poll()

    thread = threading.Thread(target=watch, name="requests", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
