"""Rows for TensorBoard, in event files."""

from __future__ import annotations

import os
import shutil
import tempfile
import time

from launchyard.run.layout import TENSORBOARD
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from launchyard.training.telemetry.trackers.base import UPLOAD_SECONDS, TrackerMark, Values


# -- TensorBoard -----------------------------------------------------------------------------------------------------
class TensorBoardTracker:
    """RUN_URL/tensorboard: event files, one an attempt. TensorBoard itself skips rows that a resume has replaced."""

    def __init__(self, run: RunDir, start_step: int, attempt: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._mark = TrackerMark(run, "tensorboard")
        self.done = min(self._mark.read(), start_step)
        self._folder = run.path(TENSORBOARD) if run.local else tempfile.mkdtemp()
        self._writer = SummaryWriter(
            self._folder, purge_step=self.done + 1 if attempt else None, filename_suffix=f".{attempt:04d}"
        )
        self._uploaded = time.monotonic()
        self._last = self.done

    def log(self, step: int, values: Values) -> None:
        self._last = step
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def flush(self) -> None:
        self._writer.flush()
        if self._run.local:
            self._mark.write(self._last)
        elif time.monotonic() - self._uploaded > UPLOAD_SECONDS:
            self._upload()

    def _upload(self) -> None:
        for name in os.listdir(self._folder):
            with open(os.path.join(self._folder, name), "rb") as file:
                files.write(self._run.path(TENSORBOARD, name), file.read())
        self._uploaded = time.monotonic()
        self._mark.write(self._last, now=True)

    def close(self) -> None:
        self._writer.close()
        self._mark.write(self._last, now=True)
        if not self._run.local:
            self._upload()
            shutil.rmtree(self._folder, ignore_errors=True)
