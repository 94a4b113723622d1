"""Rows as one CSV file for each kind of row."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile

from launchyard.run.layout import METRICS_CSV
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from launchyard.training.telemetry.trackers.base import Values


# -- CSV -------------------------------------------------------------------------------------------------------------
class CsvTracker:
    """RUN_URL/metrics.csv: a line a step. In a store, where nothing can be appended, it is written when all is done."""

    done = 0  # written anew by each attempt

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._path = run.path(METRICS_CSV) if run.local else os.path.join(tempfile.mkdtemp(), METRICS_CSV)
        self._columns: list[str] = ["step"]
        self._file = open(self._path, "w", newline="")  # noqa: SIM115

    def log(self, step: int, values: Values) -> None:
        mine = {key.removeprefix("train/"): value for key, value in values.items() if key.startswith("train/")}
        if not mine:
            return
        if unknown := [key for key in mine if key not in self._columns]:
            self._widen(unknown)
        csv.writer(self._file).writerow([step, *(mine.get(column, "") for column in self._columns[1:])])

    def _widen(self, columns: list[str]) -> None:
        """Write what there is anew, with more columns: some rows have figures that those before had not."""
        self._file.close()
        with open(self._path, newline="") as file:
            rows = list(csv.reader(file))[1:]
        self._columns += columns
        self._file = open(self._path, "w", newline="")  # noqa: SIM115
        writer = csv.writer(self._file)
        writer.writerow(self._columns)
        writer.writerows([*row, *[""] * (len(self._columns) - len(row))] for row in rows)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        if not self._run.local:
            with open(self._path, "rb") as file:
                files.write(self._run.path(METRICS_CSV), file.read())
            shutil.rmtree(os.path.dirname(self._path), ignore_errors=True)
