"""Logs of an attempt on their way into a run directory in a store, while they grow. Knows no store.

A log lies there in parts of one size; the newest is replaced as it grows. See RunDir.read_log for the way back.
"""

from __future__ import annotations

import os

from launchyard.run.layout import LOG_PART_BYTES, is_log, log_part, logs_folder
from launchyard.run.rundir import RunDir
from launchyard.storage import files, retry

EVERY_SECONDS = 5.0
LAST_SECONDS = 60.0  # for the rest, when the attempt has ended


class LogUpload:
    """Uploads all *.log of a local folder. `poll` it often; `finish` when all writers have ended."""

    def __init__(self, run: RunDir, attempt: int, folder: str) -> None:
        self._run = run
        self._to = logs_folder(attempt)
        self._from = folder
        self._done: dict[str, int] = {}
        self._task = run.periodic(self._upload, every=EVERY_SECONDS)

    def poll(self) -> None:
        if not self._run.local:
            self._task.poll()

    def finish(self) -> None:
        """OSError if the store does not take them; the run does not depend on it."""
        if self._run.local:
            return
        seconds = min(LAST_SECONDS, retry.current_retry_budget())
        if not self._task.settle(seconds):  # an upload that has begun may end after anything that we do now
            raise TimeoutError(f"the store has not taken them after {seconds:.0f} s")
        with retry.retry_budget(seconds):
            self._upload()

    def _upload(self) -> None:
        for name in sorted(os.listdir(self._from)):
            if is_log(name):
                self._upload_file(name)

    def _upload_file(self, name: str) -> None:
        with open(os.path.join(self._from, name), "rb") as file:
            while True:
                done = self._done.get(name, 0)
                part, inside = divmod(done, LOG_PART_BYTES)
                file.seek(part * LOG_PART_BYTES)
                raw = file.read(LOG_PART_BYTES)
                if len(raw) <= inside:
                    return
                files.write(self._run.path(log_part(f"{self._to}/{name}", part)), raw)
                self._done[name] = part * LOG_PART_BYTES + len(raw)
