"""The loop's profiler: told of the beginning of each step, it traces those that are asked for.

Each rank traces by itself, without a word to the others. The step before a window is traced too, and thrown away: the
first steps under torch's profiler are slow.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from launchyard.training.profile.requests import Requests, Window, not_before
from launchyard.training.profile.trace import Trace, Traced
from launchyard.training.profile.writing import TraceWriter

LOOK_SECONDS = 1.0  # between two looks for a request
NEVER = sys.maxsize


class Profiler:
    """Between two windows a step costs two comparisons and a look at the clock."""

    def __init__(
        self,
        subject: Traced,
        windows: Sequence[Window],
        requests: Requests,
        writer: TraceWriter,
    ) -> None:
        self._subject = subject
        self._windows = list(windows)
        self._requests = requests
        self._writer = writer
        self._trace: Trace | None = None
        self._warms_up = False  # the trace that runs is not kept
        self._due = 0  # the step at which there is something to do
        self._look_at = 0.0

    def begin(self, step: int) -> None:
        """Step 1, 2, 3 … begins, and the one before has ended. An error here is told, and ends the tracing alone."""
        if step < self._due and time.monotonic() < self._look_at:
            return
        try:
            self._look(step)
            self._turn(step)
        except (OSError, RuntimeError) as error:
            self._give_up(error)

    def end(self) -> None:
        """No step follows, for now."""
        try:
            self._stop()
        except (OSError, RuntimeError) as error:
            self._give_up(error)

    def wait(self, seconds: float) -> None:
        """Until all is written, for so long."""
        self._writer.wait(seconds)

    def _look(self, step: int) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        try:
            self._windows += [not_before(window, step + 1) for window in self._requests.news()]
        except ValueError as error:
            self._writer.not_traced(f"the request makes no sense: {error}")

    def _turn(self, step: int) -> None:
        if self._trace is not None and not self._warms_up and step <= self._trace.window.last:
            self._trace.next_step(step)
            return
        self._stop()
        self._windows = [window for window in self._windows if step <= window.last]
        nearest = min(self._windows, key=lambda window: window.first, default=None)
        if nearest is not None and nearest.first <= step + 1:
            self._warms_up = nearest.first > step
            self._trace = Trace(self._subject, nearest, step)
        self._due = step + 1 if self._trace else nearest.first - 1 if nearest else NEVER

    def _stop(self) -> None:
        trace = self._trace
        self._trace = None
        if trace is None:
            return
        if self._warms_up:
            trace.stop()
        else:
            self._writer.take(trace)

    def _give_up(self, error: Exception) -> None:
        self._windows = []
        self._trace = None
        self._subject.clock.ranges = None
        self._due = NEVER
        self._writer.not_traced(f"{type(error).__name__}: {error}")
