"""The worker of a trial makes the steps of a run and saves nothing; its learning rate is its own, its memory ends."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.launcher.trial.child import ChildEnd, TrialLimits
from launchyard.launcher.trial.trial import died_of_memory
from launchyard.model.memory import checkpoint_bytes, training_memory
from launchyard.run.rundir import RunDir
from launchyard.training.spec import DataSpec, read_workload
from launchyard.training.trial.spec import RESULT, TRIAL, Trial, TrialResult
from tests.support.ranks import ForkedProcess
from tests.support.small_runs import EXACT, history, make_run, run_workers, write_data

TRIAL_WORKER = "launchyard.training.trial.worker"
UNTIL_SAVED = {"train.max_steps": 12, "checkpoint.every_steps": None, "checkpoint.every_minutes": None}


@pytest.fixture
def data(tmp_path: Path) -> DataSpec:
    return write_data(tmp_path / "data")


def try_out(run: RunDir, trial: Trial) -> int:
    run.write_json(TRIAL, trial.model_dump(mode="json"))
    process = ForkedProcess(TRIAL_WORKER, [run.url], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        return process.wait(timeout=120)
    finally:
        process.kill()


def rows_of(run: RunDir) -> list[dict[str, Any]]:
    return list(run.attempt_rows("steps", 0))


@given(st.floats(1e-9, 1e-3), st.floats(1.5, 1e6), st.integers(2, 300))
def test_each_rate_is_the_same_factor_above_the_last(lowest: float, factor: float, n_steps: int) -> None:
    trial = Trial(n_steps=n_steps, lr_range=(lowest, lowest * factor))
    rates = [trial.lr(step) or 0.0 for step in range(n_steps)]
    assert rates[0] == lowest and rates[-1] == pytest.approx(lowest * factor)
    ratios = [after / before for before, after in itertools.pairwise(rates)]
    assert ratios == pytest.approx([factor ** (1 / (n_steps - 1))] * (n_steps - 1))
    assert Trial(n_steps=n_steps).lr(0) is None


def test_its_steps_are_those_of_a_run_to_the_bit(tmp_path: Path, data: DataSpec) -> None:
    """A trial at the rates of the recipe is the beginning of its run, and leaves no checkpoint."""
    run = make_run(tmp_path / "run", data, {"train.max_steps": 12})
    run_workers(run, 1)
    tried = make_run(tmp_path / "trial", data, UNTIL_SAVED)
    assert try_out(tried, Trial(n_steps=6)) == 0, tried.errors(0)
    assert [tuple(row[key] for key in EXACT) for row in rows_of(tried)] == history(run)[:6]
    assert not tried.listdir("checkpoints")
    result = TrialResult.model_validate(tried.read_json(RESULT))
    assert result.peak >= result.runtime > 1 << 20


@pytest.mark.parametrize("background", [True, False])
def test_tensors_take_what_is_planned(tmp_path: Path, data: DataSpec, background: bool) -> None:
    """With the copy that saves are written from, where they are written beside the steps."""
    wide = {"model.dim": 128, "model.ffn_dim": 512, "checkpoint.async_save": background, "train.precision": "fp32"}
    run = make_run(tmp_path / "trial", data, {**UNTIL_SAVED, **wide})
    assert try_out(run, Trial(n_steps=2, counts_tensors=True)) == 0, run.errors(0)
    result = TrialResult.model_validate(run.read_json(RESULT))
    model = read_workload(run).model
    sizes = {"micro_batch_size": 12, "seq_len": 16, "shards": 1, "precision": "fp32", "device": "cpu"}
    planned = training_memory(model, **sizes)["total"] + background * checkpoint_bytes(model)
    assert result.tensors == pytest.approx(planned, rel=0.05)
    assert len(result.cpu_seconds) == 2 and min(result.cpu_seconds) > 0


def test_the_rate_rises_through_its_range(tmp_path: Path, data: DataSpec) -> None:
    trial = Trial(n_steps=5, lr_range=(1e-5, 1e-1))
    run = make_run(tmp_path / "trial", data, UNTIL_SAVED)
    assert try_out(run, trial) == 0, run.errors(0)
    assert [row["lr"] for row in rows_of(run)] == [trial.lr(step) for step in range(5)]


def test_a_worker_with_too_little_memory_says_so(tmp_path: Path, data: DataSpec) -> None:
    """By an allocation that fails, in the moment it is asked for: nothing else of the machine is in danger."""
    wide = {**UNTIL_SAVED, "model.dim": 2048, "model.ffn_dim": 8192, "model.n_heads": 16}
    run = make_run(tmp_path / "trial", data, wide)
    assert try_out(run, Trial(n_steps=2, memory_bytes=600 << 20)) != 0
    assert died_of_memory(ChildEnd(1, 0), run.errors(0), TrialLimits(60, 600 << 20)), run.errors(0)


ENDS: list[tuple[ChildEnd, list[dict[str, Any]], bool]] = [
    (ChildEnd(None, 0, "memory"), [], True),
    (ChildEnd(None, 0, "time"), [], False),
    (ChildEnd(-9, 0), [], True),
    (ChildEnd(1, 0), [{"type": "OutOfMemoryError", "message": "CUDA out of memory. Tried to allocate 2 GiB"}], True),
    (
        ChildEnd(1, 0),
        [{"type": "RuntimeError", "message": "[enforce fail] DefaultCPUAllocator: can't allocate memory"}],
        True,
    ),
    (ChildEnd(1, 0), [{"type": "ValueError", "message": "data.source: no such folder"}], False),
    (ChildEnd(-6, 80), [], True),  # as a library aborts that cannot allocate
    (ChildEnd(-6, 10), [], False),
]


@pytest.mark.parametrize(("ended", "errors", "of_memory"), ENDS)
def test_ends_for_want_of_memory(ended: ChildEnd, errors: list[dict[str, Any]], of_memory: bool) -> None:
    assert died_of_memory(ended, errors, TrialLimits(60, 100)) is of_memory
