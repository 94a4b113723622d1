"""The rows of a run for other people's tools: CSV, TensorBoard, Weights & Biases, MLflow. Rank 0 only.

A thread of its own hands the rows over, so that a tool that is slow, broken or away costs no step; that is said once.
A run that resumes goes on in the same place, and no step stands there twice. Keys and tokens come from the
environment, where each tool looks for them itself; none is read here. Light until a tracker is opened.
"""

from __future__ import annotations

import contextlib
import csv
import heapq
import importlib.util
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from model import files
from training.config import Recipe
from training.rundir import RunDir

PACKAGES = {"csv": None, "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
WAITING_ROWS = 10_000
MARK_SECONDS = 10.0
UPLOAD_SECONDS = 120.0  # between two uploads of files into a store
NOT_SHOWN = ("step", "data_hash", "phases", "attempt", "time")

Values = Mapping[str, float]


class Tracker(Protocol):
    """One tool. Called by one thread only; what it raises ends its use. `done`: the last step that it has for sure."""

    @property
    def done(self) -> int: ...
    def log(self, step: int, values: Values) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def missing(trackers: Sequence[str]) -> list[str]:
    """Of these trackers, those whose package this Python does not have."""
    return [name for name in trackers if (package := PACKAGES[name]) and importlib.util.find_spec(package) is None]


def install_words(names: Sequence[str]) -> str:
    return f"pip install 'launchyard[{','.join(names)}]'"


class Trackers:
    """All that a recipe asks for. They are opened by the thread as well: some tools ask their server first."""

    def __init__(
        self,
        openers: Mapping[str, Callable[[], Tracker]],
        on_event: Callable[..., None],
        history: Callable[[int], Iterable[tuple[int, Values]]] = lambda done: (),
    ) -> None:
        """`history(step)`: what earlier attempts have done after a step, for a tracker that was killed or away then."""
        self._openers, self._on_event, self._history = openers, on_event, history
        self._queue: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(WAITING_ROWS)
        self._full = False
        self._thread = threading.Thread(target=self._run, name="trackers", daemon=True)
        self._thread.start()

    def step(self, row: Mapping[str, Any]) -> None:
        self._put(int(row["step"]), of_step(row))

    def validated(self, row: Mapping[str, Any]) -> None:
        self._put(int(row["step"]), of_validation(row))

    def _put(self, step: int, values: dict[str, float]) -> None:
        try:
            self._queue.put_nowait((step, values))
        except queue.Full:
            if not self._full:
                self._full = True
                self._on_event("tracker trouble", message=f"trackers are {WAITING_ROWS} rows behind; some are left out")

    def close(self) -> None:
        """No more rows come; those that wait are still handed over."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=1.0)

    def wait(self, seconds: float) -> None:
        """Until that is done, for so long."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._on_event("tracker trouble", message=f"the last rows were not taken within {seconds:.0f} s")

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

    def _try(self, trackers: dict[str, Tracker], name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            trackers.pop(name, None)
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._on_event("tracker trouble", tracker=name, message=f"{name} is not used any more: {said}")


def of_step(row: Mapping[str, Any]) -> dict[str, float]:
    values = {f"train/{key}": float(value) for key, value in row.items() if key not in NOT_SHOWN}
    return values | {f"phase/{phase}": seconds for phase, seconds in row.get("phases", {}).items()}


def of_validation(row: Mapping[str, Any]) -> dict[str, float]:
    return {"validation/loss": float(row["loss"])}


def history(run: RunDir, start_step: int, done: int) -> Iterator[tuple[int, Values]]:
    """What survived up to the step from which an attempt goes on, after one that a tracker has; in order."""
    steps = ((int(row["step"]), of_step(row)) for row in run.rows("steps"))
    validations = ((int(row["step"]), of_validation(row)) for row in run.rows("validation"))
    for step, values in heapq.merge(steps, validations, key=lambda entry: entry[0]):
        if done < step <= start_step:
            yield step, values


class Mark:
    """Up to which step a tracker has been given rows, in the run directory: some of them can only be written to."""

    def __init__(self, run: RunDir, name: str) -> None:
        self._run, self._name = run, f"metrics/tracker-{name}.json"
        self._written = time.monotonic()

    def read(self) -> int:
        try:
            return int(self._run.read_json(self._name)["step"])
        except FileNotFoundError:
            return 0

    def write(self, step: int, *, now: bool = False) -> None:
        if now or time.monotonic() - self._written > MARK_SECONDS:
            self._run.write_json(self._name, {"step": step})
            self._written = time.monotonic()


# -- CSV -------------------------------------------------------------------------------------------------------------
class CsvTracker:
    """RUN_URL/metrics.csv: a line a step. In a store, where nothing can be appended, it is written when all is done."""

    done = 0  # written anew by each attempt

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._path = run.path("metrics.csv") if run.local else os.path.join(tempfile.mkdtemp(), "metrics.csv")
        self._columns: list[str] = ["step"]
        self._file = open(self._path, "w", newline="")  # noqa: SIM115

    def log(self, step: int, values: Values) -> None:
        mine = {key.removeprefix("train/"): value for key, value in values.items() if key.startswith("train/")}
        if not mine:
            return
        if self._columns == ["step"]:
            self._columns += list(mine)
            csv.writer(self._file).writerow(self._columns)
        csv.writer(self._file).writerow([step, *(mine.get(column, "") for column in self._columns[1:])])

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        if not self._run.local:
            with open(self._path, "rb") as file:
                files.write(self._run.path("metrics.csv"), file.read())
            shutil.rmtree(os.path.dirname(self._path), ignore_errors=True)


# -- TensorBoard -----------------------------------------------------------------------------------------------------
class TensorBoardTracker:
    """RUN_URL/tensorboard: event files, one an attempt. TensorBoard itself passes over what a resume has taken back."""

    def __init__(self, run: RunDir, start_step: int, attempt: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._run, self._mark = run, Mark(run, "tensorboard")
        self.done = min(self._mark.read(), start_step)
        self._folder = run.path("tensorboard") if run.local else tempfile.mkdtemp()
        self._writer = SummaryWriter(
            self._folder, purge_step=self.done + 1 if attempt else None, filename_suffix=f".{attempt:04d}"
        )
        self._uploaded, self._last = time.monotonic(), self.done

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
                files.write(self._run.path("tensorboard", name), file.read())
        self._uploaded = time.monotonic()
        self._mark.write(self._last, now=True)

    def close(self) -> None:
        self._writer.close()
        self._mark.write(self._last, now=True)
        if not self._run.local:
            self._upload()
            shutil.rmtree(self._folder, ignore_errors=True)


# -- Weights & Biases ------------------------------------------------------------------------------------------------
class WandbTracker:
    """One W&B run for all attempts, under the run's id. WANDB_API_KEY, WANDB_MODE=offline and such are W&B's own."""

    def __init__(self, run: RunDir, recipe: Recipe, run_id: str, start_step: int) -> None:
        import wandb

        # Written beside the run where that is local; W&B's offline files are folders of this machine
        folder = run.path() if run.local else tempfile.mkdtemp(prefix="launchyard-wandb-")
        self._run = wandb.init(
            id=run_id,
            name=run_id,
            project=recipe.metrics.project or recipe.name,
            config=recipe.model_dump(mode="json", exclude_none=True),
            dir=folder,
            resume="allow",
            settings=wandb.Settings(silent=True),
        )
        self._mark = Mark(run, "wandb")
        # W&B's own next step; it takes none a second time. Offline it does not know
        self._from = int(self._run.step or 0)
        self.done = max(0, self._from - 1) if not self._run.offline else min(self._mark.read(), start_step)
        self._last = self.done

    def log(self, step: int, values: Values) -> None:
        if step >= self._from:
            self._run.log(dict(values), step=step)
        self._last = step

    def flush(self) -> None:
        self._mark.write(self._last)

    def close(self) -> None:
        self._run.finish()
        self._mark.write(self._last, now=True)


# -- MLflow ----------------------------------------------------------------------------------------------------------
class MlflowTracker:
    """One MLflow run for all attempts, found by its tag. MLFLOW_TRACKING_URI says where; else beside the run."""

    TAG = "launchyard.run_id"

    def __init__(self, run: RunDir, recipe: Recipe, run_id: str) -> None:
        import mlflow

        uri = None if mlflow.environment_variables.MLFLOW_TRACKING_URI.is_set() else self._own_uri(run)
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        name = recipe.metrics.project or recipe.name
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([number], f"tags.`{self.TAG}` = '{run_id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(number, run_name=run_id, tags={self.TAG: run_id}).info.run_id
            self._log_recipe(recipe)
        self._have = {key: self._last_step(key) for key in ("train/loss", "validation/loss")}
        self.done = max(0, min(self._have.values()))
        self._rows: list[Any] = []
        self._sent = time.monotonic()

    @staticmethod
    def _own_uri(run: RunDir) -> str:
        if not run.local:
            raise ValueError("set MLFLOW_TRACKING_URI: MLflow cannot keep its runs beside one that lies in a store")
        return f"sqlite:///{run.path('mlflow.db')}"

    def _log_recipe(self, recipe: Recipe) -> None:
        for section, values in recipe.model_dump(mode="json", exclude_none=True).items():
            for key, value in values.items() if isinstance(values, dict) else [("", values)]:
                self._client.log_param(self._id, f"{section}.{key}".rstrip("."), str(value)[:500])

    def _last_step(self, key: str) -> int:
        return max((metric.step for metric in self._client.get_metric_history(self._id, key)), default=-1)

    def log(self, step: int, values: Values) -> None:
        from mlflow.entities import Metric

        if step > self._have["validation/loss" if "validation/loss" in values else "train/loss"]:
            now = int(time.time() * 1000)
            self._rows += [Metric(key, value, now, step) for key, value in values.items()]
        if len(self._rows) >= 500:
            self._send()

    def flush(self) -> None:
        if time.monotonic() - self._sent > 5.0:
            self._send()

    def _send(self) -> None:
        rows, self._rows = self._rows, []
        for start in range(0, len(rows), 1000):
            self._client.log_batch(self._id, metrics=rows[start : start + 1000])
        self._sent = time.monotonic()

    def close(self) -> None:
        self._send()
        self._client.set_terminated(self._id)


def open_trackers(
    run: RunDir, recipe: Recipe, run_id: str, *, attempt: int, start_step: int, on_event: Callable[..., None]
) -> Trackers | None:
    """None if the recipe asks for none. ValueError names what is not installed."""
    if lacking := missing(recipe.metrics.trackers):
        raise ValueError(
            f"metrics.trackers: {', '.join(lacking)} cannot be used, for the package is not installed where the "
            f"workers run; {install_words(lacking)}, or leave it out"
        )
    openers: dict[str, Callable[[], Tracker]] = {
        "csv": lambda: CsvTracker(run),
        "tensorboard": lambda: TensorBoardTracker(run, start_step, attempt),
        "wandb": lambda: WandbTracker(run, recipe, run_id, start_step),
        "mlflow": lambda: MlflowTracker(run, recipe, run_id),
    }
    chosen: dict[str, Callable[[], Tracker]] = {name: openers[name] for name in recipe.metrics.trackers}
    return Trackers(chosen, on_event, partial(history, run, start_step)) if chosen else None
