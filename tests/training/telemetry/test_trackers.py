"""Trackers: every step once across a resume, whatever the tool; a broken one costs nothing but itself."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import signal
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launchyard.errors import RecipeErrors
from launchyard.launcher.submit.packages import check_packages
from launchyard.run.rundir import RunDir
from launchyard.training.telemetry.trackers.base import surviving_rows
from launchyard.training.telemetry.trackers.open import PACKAGES, Trackers, install_command, missing
from tests.support.small_runs import fresh_worker, make_run, run_workers, start_workers, write_data
from tests.support.store import Bucket


class Told:
    """A tracker that remembers, and breaks where it is told to."""

    def __init__(self, breaks_at: int | None = None, pause: float = 0.0, done: int = 0) -> None:
        self.done = done
        self.rows: list[tuple[int, Mapping[str, float]]] = []
        self.closed = False
        self._breaks_at, self._pause = breaks_at, pause

    def log(self, step: int, values: Mapping[str, float]) -> None:
        time.sleep(self._pause)
        if step == self._breaks_at:
            raise ConnectionError("its server is gone")
        self.rows.append((step, values))

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def row(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1.0 / step, "data_hash": "ab", "phases": {"other": 0.1}, "attempt": 0, "time": 1.0}


def test_a_broken_tracker_is_said_once_and_hurts_no_other() -> None:
    events: list[dict[str, Any]] = []
    good, bad = Told(), Told(breaks_at=3)

    def fails() -> Any:
        raise RuntimeError("no key")

    trackers = Trackers(
        {"csv": lambda: good, "wandb": lambda: bad, "mlflow": fails}, lambda name, **facts: events.append(facts)
    )
    for step in range(1, 10):
        trackers.step(row(step))
    trackers.validated({"step": 9, "loss": 2.0})
    trackers.close()
    trackers.wait(10)
    assert [step for step, _ in good.rows] == [*range(1, 10), 9] and good.closed
    assert good.rows[0][1] == {"train/loss": 1.0, "phase/other": 0.1}
    assert good.rows[-1][1] == {"validation/loss": 2.0}
    assert [step for step, _ in bad.rows] == [1, 2]
    assert [(event["tracker"], "no key" in event["message"]) for event in events] == [
        ("mlflow", True),
        ("wandb", False),
    ]


def test_a_tracker_gets_what_it_has_missed(tmp_path: Path) -> None:
    """It was away when steps 3 to 5 were done."""
    run = make_run(tmp_path / "run", write_data(tmp_path / "data"), {"train.max_steps": 5, "validation.every_steps": 4})
    run_workers(run, 1)
    late = Told(done=2)
    trackers = Trackers({"csv": lambda: late}, lambda name, **facts: None, partial(surviving_rows, run, 5))
    trackers.step(row(6))
    trackers.close()
    trackers.wait(10)
    assert [step for step, _ in late.rows] == [3, 4, 4, 5, 5, 6]
    assert list(late.rows[2][1]) == ["validation/loss", "validation/perplexity"]


def test_a_slow_tracker_holds_nobody_up() -> None:
    events: list[dict[str, Any]] = []
    trackers = Trackers({"csv": lambda: Told(pause=0.2)}, lambda name, **facts: events.append(facts))
    began = time.monotonic()
    for step in range(1, 20):
        trackers.step(row(step))
    trackers.close()
    trackers.wait(0.3)
    assert time.monotonic() - began < 3.0  # of 3.8 in which it would have been told of all
    assert "within" in events[-1]["message"]


# -- runs, killed and resumed ---
def killed_and_resumed(folder: Path, tracker: str, **overrides: Any) -> RunDir:
    """One worker, killed some steps after a checkpoint, and resumed to its end."""
    recipe = {"train.max_steps": 24, "metrics.trackers": [tracker], "validation.every_steps": 12} | overrides
    run = make_run(folder / "run", write_data(folder / "data"), recipe)
    (process,) = start_workers(run, 1)
    try:
        end = time.monotonic() + 60
        while len(list(run.rows("steps"))) < 14:
            assert time.monotonic() < end and process.poll() is None, run.errors(0)
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)  # while it still has steps to make
    finally:
        process.kill()
        process.wait()
    run_workers(run, 1)
    run_log = Path(run.path("attempts/0001/logs/rank-00000.log")).read_text()
    trouble = [event for attempt in (0, 1) for event in run.events(attempt) if event["event"] == "tracker trouble"]
    assert not trouble, run_log
    return run


@pytest.mark.slow
def test_csv_has_every_step_once(tmp_path: Path) -> None:
    run = killed_and_resumed(tmp_path, "csv")
    with open(run.path("metrics.csv"), newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["step"]) for line in lines] == list(range(1, 25))
    assert [float(line["loss"]) for line in lines] == [row["loss"] for row in run.rows("steps")]


needs = {
    name: pytest.mark.skipif(bool(package) and importlib.util.find_spec(package) is None, reason=f"needs {package}")
    for name, package in PACKAGES.items()
}


def steps_in(folder: Path, key: str = "train/loss") -> list[int]:
    """As TensorBoard would show them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(folder))
    seen.Reload()
    return [event.step for event in seen.Scalars(key)]


@needs["tensorboard"]
def test_tensorboard_has_every_step_once(tmp_path: Path) -> None:
    run = killed_and_resumed(tmp_path, "tensorboard")
    assert steps_in(Path(run.path("tensorboard"))) == list(range(1, 25))
    assert steps_in(Path(run.path("tensorboard")), "validation/loss") == [12, 24]


@pytest.mark.slow
@needs["wandb"]
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt leaves a part of one run, of the run's id, to be sent with `wandb sync`; no step is missing."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    run = killed_and_resumed(tmp_path, "wandb")
    folders = sorted(Path(run.path("wandb")).glob("offline-run-*"))
    assert folders and all(folder.name.endswith("-small") for folder in folders)
    raw = b"".join(path.read_bytes() for folder in folders for path in folder.glob("run-small.wandb"))
    found = [json.dumps(row["loss"]).encode() in raw for row in run.rows("steps")]
    assert sum(found) >= 22, found  # records are cut at the ends of blocks


@pytest.mark.slow
@needs["mlflow"]
@pytest.mark.filterwarnings("default")  # what MLflow does is MLflow's
def test_mlflow_has_every_step_once(tmp_path: Path) -> None:
    import mlflow

    run = killed_and_resumed(tmp_path, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run.path('mlflow.db')}")
    experiment = client.get_experiment_by_name("small")
    (found,) = client.search_runs([experiment.experiment_id])
    losses = sorted((one.step, one.value) for one in client.get_metric_history(found.info.run_id, "train/loss"))
    assert losses == [(row["step"], row["loss"]) for row in run.rows("steps")]
    assert found.data.params["train.max_steps"] == "24"
    assert found.info.status == "FINISHED"


@pytest.mark.s3
@needs["tensorboard"]
def test_beside_a_run_in_a_store(tmp_path: Path, s3: Bucket) -> None:
    recipe = {"train.max_steps": 8, "metrics.trackers": ["csv", "tensorboard"]}
    run = make_run(f"{s3.url}/run", write_data(tmp_path / "data"), recipe)
    run_workers(run, 1)
    run_workers(run, 1, {"train.max_steps": 12})
    lines = list(csv.DictReader(io.StringIO(run.read_text("metrics.csv"))))
    assert [int(line["step"]) for line in lines] == list(range(1, 13))
    local = tmp_path / "tensorboard"
    local.mkdir()
    for name in run.listdir("tensorboard"):
        (local / name).write_bytes(run.read_bytes(f"tensorboard/{name}"))
    assert steps_in(local) == list(range(1, 13))


# -- what is not there ---
def test_a_missing_package_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from launchyard.launcher.recipe.load import load_recipe

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert missing(["csv"]) == []
    loaded = load_recipe("quickstart", {"metrics.trackers": ["csv", "wandb", "mlflow"]})
    with pytest.raises(RecipeErrors, match=r"metrics.trackers: wandb, mlflow are not installed here") as told:
        check_packages(loaded)
    assert told.value.hint == install_command("wandb", "mlflow")
    assert told.value.hint.endswith("pip install 'wandb>=0.18' 'mlflow-skinny>=2.16' 'sqlalchemy>=2' 'alembic>=1.13'")


def test_a_worker_without_the_package_fails_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where workers have another Python than the launcher: no second attempt would help."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tensorboard'] = None\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    run = make_run(tmp_path / "run", write_data(tmp_path / "data"), {"metrics.trackers": ["tensorboard"]})
    assert fresh_worker(run).wait(60) == 1
    (error,) = run.errors(0)
    assert error["fatal"] and "pip install 'tensorboard>=2.17'" in error["message"]
