"""The interface of a tracker, and its values for a step. Light."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from launchyard.run import layout
from launchyard.run.rows import values_of
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject

MARK_SECONDS = 10.0
UPLOAD_SECONDS = 120.0  # between two uploads of files into a store
NOT_SHOWN = (
    *("step", "data_hash", "phases", "source_tokens", "grad_norms", "group_grad_norms", "figures"),
    *("attempt", "time"),
)
Values = Mapping[str, float]


class Tracker(Protocol):
    """One tool. Called by one thread only; an exception ends its use. `done`: the last step that it has for sure."""

    @property
    def done(self) -> int: ...
    def log(self, step: int, values: Values) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def of_step(row: Mapping[str, Any]) -> dict[str, float]:
    values = {f"train/{key}": float(value) for key, value in row.items() if key not in NOT_SHOWN and value is not None}
    values |= {f"train/grad_norms/{part}": float(norm) for part, norm in row.get("grad_norms", {}).items()}
    # By number: not every tool takes the path of a source, or a pattern, for a name.
    for key in ("source_tokens", "group_grad_norms"):
        values |= {f"train/{key}/{n}": float(value) for n, value in enumerate(row.get(key, {}).values())}
    values |= {f"train/{name}": float(value) for name, value in (row.get("figures") or {}).items()}
    return values | {f"phase/{phase}": seconds for phase, seconds in row.get("phases", {}).items()}


def of_validation(row: Mapping[str, Any]) -> dict[str, float]:
    where = f"validation/{row['set']}" if row.get("set") else "validation"
    hidden = (*NOT_SHOWN, "set", "seconds")
    shown = {key: value for key, value in row.items() if key not in hidden and value is not None}
    return {f"{where}/{key}": float(value) for key, value in {**shown, **(row.get("figures") or {})}.items()}


def of_tasks(row: JsonObject) -> dict[str, float]:
    return {f"tasks/{name}": value for name, value in values_of(row["scores"]).items()}


def surviving_rows(run: RunDir, start_step: int, done: int) -> Iterator[tuple[int, Values]]:
    """Yields surviving rows up to the step from which an attempt goes on, after one that a tracker has; in order."""
    steps = ((int(row["step"]), of_step(row)) for row in run.rows(layout.STEPS))
    validations = ((int(row["step"]), of_validation(row)) for row in run.rows(layout.VALIDATION))
    tasks = ((int(row["step"]), of_tasks(row)) for row in run.rows(layout.TASKS))
    for step, values in heapq.merge(steps, validations, tasks, key=lambda entry: entry[0]):
        if done < step <= start_step:
            yield step, values


class TrackerMark:
    """The last step whose row a tracker has got, in the run directory: some of them can only be written to."""

    def __init__(self, run: RunDir, name: str) -> None:
        self._run = run
        self._name = layout.tracker_mark(name)
        self._written = time.monotonic()

    def read(self) -> int:
        try:
            return int(self._run.read_json(self._name)["step"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # none yet, or damaged: all rows are sent
            return 0

    def write(self, step: int, *, now: bool = False) -> None:
        if now or time.monotonic() - self._written > MARK_SECONDS:
            self._run.write_json(self._name, {"step": step})
            self._written = time.monotonic()
