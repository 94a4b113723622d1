"""The end by time: agreed on by all ranks, saved and measured; with more time a run goes on as if undisturbed."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.storage.shards import read_manifest
from launchyard.training.sections.train import TrainConfig
from tests.support.small_runs import final_weights, history, make_run, run_workers, start_workers, write_data

LONG = {"train.max_steps": 1_000_000, "schedule.name": "constant", "checkpoint.every_steps": 50, "checkpoint.keep": 2}


@pytest.mark.parametrize(("given", "seconds"), [("00:02:00", 120), (3, 180), ("1-00:00:00", 86400), ("90", 5400)])
def test_a_time_is_spelled_as_schedulers_do(given: object, seconds: int) -> None:
    from launchyard.training.sections.duration import seconds_of

    found = TrainConfig.model_validate({"max_steps": 1, "max_time": given}).max_time
    assert found is not None and seconds_of(found) == seconds


@pytest.mark.parametrize("given", ["soon", "0", 0, True, "1h", "-3"])
def test_another_word_is_none(given: object) -> None:
    with pytest.raises(ValidationError):
        TrainConfig.model_validate({"max_steps": 1, "max_time": given})


def state_of(run: RunDir, step: int) -> dict[str, float]:
    return dict(read_manifest(run.path(run.checkpoint_dir(step))).train_state)


@pytest.mark.parametrize("nproc", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_it_ends_saved_and_measured_and_a_longer_one_goes_on(nproc: int, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    run = make_run(tmp_path / "run", data, {**LONG, "train.max_time": "00:02"})
    run_workers(run, nproc)
    outcome = run.outcome(run.attempts()[-1])
    assert outcome is not None and outcome.outcome == "completed"
    end = outcome.step or 0
    assert f"ended early after {end} of 1000000 steps, for train.max_time 00:02 is over" in outcome.message
    assert end > 10 and committed_steps(run)[-1] == end
    assert [row["step"] for row in run.rows("validation")] == [end]
    assert 2 <= state_of(run, end)["seconds_trained"] < 12  # a step may take long here

    longer = {"train.max_time": None, "train.max_steps": end + 20}
    run_workers(run, nproc, longer)
    whole = make_run(tmp_path / "whole", data, {**LONG, **longer})
    run_workers(whole, nproc)
    assert history(run) == history(whole)
    assert all(torch.equal(one, final_weights(whole)[key]) for key, one in final_weights(run).items())


@pytest.mark.slow
def test_attempts_add_up_as_far_as_they_were_saved(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", write_data(tmp_path / "data"), {**LONG, "train.max_time": "00:05"})
    workers = start_workers(run, 2)
    while not committed_steps(run) or state_of(run, committed_steps(run)[-1])["seconds_trained"] < 2:
        time.sleep(0.05)
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    saved = state_of(run, committed_steps(run)[-1])["seconds_trained"]
    began = time.monotonic()
    run_workers(run, 2)
    outcome = run.outcome(run.attempts()[-1])
    assert outcome is not None and outcome.outcome == "completed" and math.isfinite(saved)
    assert time.monotonic() - began < 5 - saved + 20  # and not all five again, but for the start
    assert 5 <= state_of(run, outcome.step or 0)["seconds_trained"] < 15
