"""Finds the first step at which a figure reaches its threshold, and leaves a notice of it for the owner to send.

Rank 0 only. A notice that cannot be written is tried again at the next step, and never delays one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping

from launchyard.run.rundir import RunDir
from launchyard.training.notify.notices import Notice, leave_notice
from launchyard.training.notify.section import NotifyConfig, ThresholdConfig

THRESHOLD_SECONDS = 5.0  # at the end, for a notice that is being written


class ThresholdWatch:
    def __init__(self, run: RunDir, config: ThresholdConfig) -> None:
        self._run = run
        self._config = config
        self._done = False
        self._thread: threading.Thread | None = None

    def saw(self, step: int, values: Mapping[str, object]) -> None:
        value = values.get(self._config.metric)
        if self._done or not isinstance(value, int | float) or not math.isfinite(value):
            return
        if not self._config.reached(value) or (self._thread is not None and self._thread.is_alive()):
            return
        notice = Notice(event="threshold", step=step, metric=self._config.metric, value=float(value))
        self._thread = threading.Thread(target=self._leave, args=(notice,), name="threshold", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join(THRESHOLD_SECONDS)

    def _leave(self, notice: Notice) -> None:
        try:
            leave_notice(self._run, notice)
        except OSError as error:
            print(f"the notice of a threshold could not be written, and is tried again: {error}")
            return
        self._done = True


def open_threshold(run: RunDir, config: NotifyConfig | None) -> ThresholdWatch | None:
    if config is None or config.threshold is None or "threshold" not in config.on:
        return None
    return ThresholdWatch(run, config.threshold)
