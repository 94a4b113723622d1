"""Periodic tasks of a caller that must not be delayed. Knows no run and no store.

An action that may take minutes, such as a write to a store that does not answer, runs in a thread, one at a time; an
action that fails runs again the next time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class PeriodicTask:
    """Runs `action` every so many seconds, for as long as somebody polls; at most one at a time.

    `failure`: the OSError with which the last one failed; None if it succeeded.
    """

    def __init__(self, action: Callable[[], None], *, every: float, in_thread: bool) -> None:
        self._action = action
        self._every = every
        self._in_thread = in_thread
        self._last = float("-inf")
        self._thread: threading.Thread | None = None
        self.failure: OSError | None = None

    def poll(self) -> None:
        """Begins the next one if it is due."""
        now = time.monotonic()
        if now - self._last < self._every or (self._thread is not None and self._thread.is_alive()):
            return
        self._last = now
        if not self._in_thread:
            self._run_once()
            return
        self._thread = threading.Thread(target=self._run_once, name="periodic", daemon=True)
        self._thread.start()

    def settle(self, seconds: float) -> bool:
        """Waits for the one under way; returns False if it is not over in time."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _run_once(self) -> None:
        try:
            self._action()
            self.failure = None
        except OSError as error:
            self.failure = error
