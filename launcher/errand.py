"""Small things done now and then against a run directory, by somebody who must not be held up. Knows no run.

A store may not answer for minutes, while the agent has workers to watch. So what goes to a store is done in a thread,
once, and what fails is done again the next time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from model import files
from training.rundir import RunDir


class Errand:
    """`action` every so many seconds, for as long as somebody polls. At most one is under way.

    `failure`: why it could not be done when it was last tried.
    """

    def __init__(self, run: RunDir, action: Callable[[], None], *, every: float) -> None:
        self._local, self._action, self._every = run.local, action, every
        self._last = float("-inf")
        self._thread: threading.Thread | None = None
        self.failure: OSError | None = None

    def poll(self) -> None:
        now = time.monotonic()
        if now - self._last < self._every or (self._thread is not None and self._thread.is_alive()):
            return
        self._last = now
        if self._local:
            self._do()
        else:
            self._thread = threading.Thread(target=self._do, name="errand", daemon=True)
            self._thread.start()

    def settle(self, seconds: float) -> bool:
        """Wait for the one under way; whether it is over."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _do(self) -> None:
        try:
            with files.patience(0):
                self._action()
            self.failure = None
        except OSError as error:
            self.failure = error
