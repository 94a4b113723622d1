"""What a worker leaves when it fails: its error, its log, its rows; and what it says it was."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from launchyard.run.own_code import ROOT, digest
from launchyard.run.rundir import RunDir
from launchyard.storage.errors import DeniedError, RefusedError, StoreError
from launchyard.training.checkpoint.save_timer import SaveTimer
from launchyard.training.compose import recipe_hash
from launchyard.training.recipe import Recipe, apply_overrides
from launchyard.training.telemetry.telemetry import Meter
from launchyard.training.worker import is_fatal
from tests.support.small_runs import fresh_worker, make_run, start_workers, write_data


def fail(run: RunDir) -> str:
    """Start a worker that cannot but fail; its log."""
    (process,) = start_workers(run, 1)
    try:
        assert process.wait(timeout=60) == 1
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return run.read_text("attempts/0000/logs/rank-00000.log")


IMPORTS = """
import sys, threading

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "torch.distributed.fsdp" and threading.current_thread() is threading.main_thread():
            raise ImportError(name)

sys.meta_path.insert(0, Finder())
"""


def test_one_worker_in_fp32_trains_without_fsdp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import takes as long as half of torch's. The thread of a save may import it, which no step waits for."""
    (tmp_path / "sitecustomize.py").write_text(IMPORTS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    run = make_run(tmp_path / "run", write_data(tmp_path / "data"), {"train.max_steps": 2})
    assert fresh_worker(run).wait(60) == 0, run.errors(0)


def test_a_denial_ends_a_run_and_a_store_that_fails_does_not() -> None:
    assert is_fatal(DeniedError("no right"))
    assert not is_fatal(RefusedError("an expired token")) and not is_fatal(StoreError("503"))


@pytest.fixture
def broken(tmp_path: Path) -> RunDir:
    """A run whose data has gone."""
    run = make_run(tmp_path / "run", write_data(tmp_path / "data"))
    for file in (tmp_path / "data/train").iterdir():
        file.unlink()
    return run


def test_an_error_is_recorded(broken: RunDir) -> None:
    log = fail(broken)
    (error,) = broken.errors(0)
    assert error["type"] in log and error["message"] in log and "Traceback" in error["traceback"]
    assert error["fatal"] and error["step"] is None and error["rank"] == 0
    assert [event["event"] for event in broken.events(0)] == ["process started"]


def test_a_worker_of_other_code_ends_at_once(tmp_path: Path) -> None:
    """Before it loads torch; another try would only repeat it."""
    run = make_run(tmp_path / "run", write_data(tmp_path / "data"))
    run.write_json("code.json", {"launchyard": "9.9", "source": "0" * 16})
    log = fail(run)
    (error,) = run.errors(0)
    assert (error["type"], error["fatal"]) == ("OtherCodeError", True)
    assert all(word in error["message"] for word in ("9.9", "0" * 16, digest(), str(ROOT), "launch resume"))
    assert error["message"] in log and run.events(0) == []


def test_an_error_that_cannot_be_recorded_is_in_the_log(broken: RunDir) -> None:
    broken.write_text("attempts/0000/errors", "a file where the folder should be")
    log = fail(broken)
    assert "Traceback" in log and "index.json" in log
    assert log.rstrip().splitlines()[-1].startswith("the error above could not be written to the run directory")


def test_where_a_run_is_made_does_not_change_its_hash(tmp_path: Path) -> None:
    raw = make_run(tmp_path / "run", write_data(tmp_path / "data")).read_text("recipe.yaml")

    def of(**overrides: object) -> str:
        import yaml

        changes = {key.replace("__", "."): value for key, value in overrides.items()}
        return recipe_hash(Recipe.model_validate(apply_overrides(yaml.safe_load(raw), changes)))

    assert of() == of(train__device="cuda", train__micro_batch_size=2, resources__nodes=2)
    assert len({of(), of(train__seed=9), of(optimizer__lr=1.0), of(data__seed=8), of(model__n_layers=3)}) == 5


def test_the_meter_leaves_out_what_is_done_at_a_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    meter = Meter()
    now[0] += 2.0  # waiting for data
    with meter.paused():
        now[0] += 30.0
    now[0] += 5.0
    assert meter.lap() == 7.0
    assert meter.lap() == 0.0


def test_the_timer_of_saves() -> None:
    assert not SaveTimer(None).due()
    assert SaveTimer(1e-9).due()
    timer = SaveTimer(math.inf)
    timer.reset()
    assert not timer.due()
