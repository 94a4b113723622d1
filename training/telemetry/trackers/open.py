"""The rows of a run for other people's tools: CSV, TensorBoard, Weights & Biases, MLflow. Rank 0 only.

A thread of its own passes the rows on, so a tool that is slow, broken or unreachable costs no step; one event says so.
A run that resumes goes on in the same place, and no step stands there twice. Keys and tokens come from the
environment, where each tool looks for them itself; none is read here. Light until a tracker is opened.
"""

from __future__ import annotations

import contextlib
import importlib.util
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from launchyard.host.packages import install_command
from launchyard.run.events import TRACKER_TROUBLE
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.training.recipe import Recipe
from launchyard.training.telemetry.trackers.base import (
    Tracker,
    Values,
    of_step,
    of_tasks,
    of_validation,
    surviving_rows,
)
from launchyard.training.telemetry.trackers.csv import CsvTracker
from launchyard.training.telemetry.trackers.mlflow import MlflowTracker
from launchyard.training.telemetry.trackers.tensorboard import TensorBoardTracker
from launchyard.training.telemetry.trackers.wandb import WandbTracker

PACKAGES = {"csv": None, "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
WAITING_ROWS = 10_000


def missing(trackers: Sequence[str]) -> list[str]:
    """Of these trackers, those whose package this Python does not have."""
    return [name for name in trackers if (package := PACKAGES[name]) and importlib.util.find_spec(package) is None]


class Trackers:
    """All that a recipe asks for. They are opened by the thread as well: some tools ask their server first."""

    def __init__(
        self,
        openers: Mapping[str, Callable[[], Tracker]],
        on_event: Callable[..., None],
        history: Callable[[int], Iterable[tuple[int, Values]]] = lambda done: (),
    ) -> None:
        """`history(step)`: rows of earlier attempts after a step, for a tracker that was killed or unreachable then."""
        self._openers = openers
        self._on_event = on_event
        self._history = history
        self._queue: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(WAITING_ROWS)
        self._full = False
        self._thread = threading.Thread(target=self._run, name="trackers", daemon=True)
        self._thread.start()

    def step(self, row: Mapping[str, Any]) -> None:
        self._put(int(row["step"]), of_step(row))

    def validated(self, row: Mapping[str, Any]) -> None:
        self._put(int(row["step"]), of_validation(row))

    def tasks_done(self, row: JsonObject) -> None:
        self._put(int(row["step"]), of_tasks(row))

    def _put(self, step: int, values: dict[str, float]) -> None:
        try:
            self._queue.put_nowait((step, values))
        except queue.Full:
            if not self._full:
                self._full = True
                message = f"trackers are {WAITING_ROWS} rows behind; some are left out"
                self._on_event(TRACKER_TROUBLE, message=message)

    def close(self) -> None:
        """No more rows come; those in the queue are still written."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=1.0)

    def wait(self, seconds: float) -> None:
        """Until that is done, for so long."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._on_event(TRACKER_TROUBLE, message=f"the last rows were not taken within {seconds:.0f} s")

    def _run(self) -> None:
        trackers: dict[str, Tracker] = {}
        for name, opener in self._openers.items():
            self._try(trackers, name, partial(self._open, trackers, name, opener))
        while (item := self._queue.get()) is not None:
            for name, tracker in list(trackers.items()):
                self._try(trackers, name, partial(tracker.log, *item))
            for name, tracker in list(trackers.items()) if self._queue.empty() else ():
                self._try(trackers, name, tracker.flush)
        for name, tracker in list(trackers.items()):
            self._try(trackers, name, tracker.close)

    def _open(self, trackers: dict[str, Tracker], name: str, opener: Callable[[], Tracker]) -> None:
        tracker = opener()
        for step, values in self._history(tracker.done):
            tracker.log(step, values)
        trackers[name] = tracker

    def _try(self, trackers: dict[str, Tracker], name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            trackers.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._on_event(TRACKER_TROUBLE, tracker=name, message=f"{name} is not used any more: {reason}")


def open_trackers(
    run: RunDir, recipe: Recipe, run_id: str, *, attempt: int, start_step: int, on_event: Callable[..., None]
) -> Trackers | None:
    """None if the recipe names none. ValueError names the missing packages."""
    if lacking := missing(recipe.metrics.trackers):
        raise ValueError(
            f"metrics.trackers: {', '.join(lacking)} cannot be used, for the package is not installed where the "
            f"workers run; {install_command(*lacking)}, or leave it out"
        )
    openers: dict[str, Callable[[], Tracker]] = {
        "csv": lambda: CsvTracker(run),
        "tensorboard": lambda: TensorBoardTracker(run, start_step, attempt),
        "wandb": lambda: WandbTracker(run, recipe, run_id, start_step),
        "mlflow": lambda: MlflowTracker(run, recipe, run_id),
    }
    chosen: dict[str, Callable[[], Tracker]] = {name: openers[name] for name in recipe.metrics.trackers}
    return Trackers(chosen, on_event, partial(surviving_rows, run, start_step)) if chosen else None
