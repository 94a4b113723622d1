"""A few batches of validation before the first step: they change and record nothing, and their failure is no step's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launchyard.run.rundir import RunDir
from launchyard.training.own.frozen import frozen_name, write_frozen
from launchyard.training.own.source import OwnSource
from tests.support.small_runs import (
    VOCAB,
    final_weights,
    history,
    make_run,
    run_workers,
    start_workers,
    write_chunks,
    write_data,
)

BROKEN = """
import torch

def optimizer(named_parameters, lr):
    named_parameters[0][1].data[0] = float("nan")
    return torch.optim.SGD([parameter for _, parameter in named_parameters], lr=lr)
"""
CHECKED = {"validation.sanity_batches": 2, "train.max_steps": 3, "checkpoint.every_steps": 2}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_with_it_is_the_run_without(workers: int, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    checked = make_run(tmp_path / "checked", data, CHECKED)
    plain = make_run(tmp_path / "plain", data, CHECKED | {"validation.sanity_batches": None})
    for run in (checked, plain):
        run_workers(run, workers)
    assert history(checked) == history(plain)
    assert [row["step"] for row in checked.rows("validation")] == [3]
    weights = final_weights(plain)
    assert all(torch.equal(one, weights[key]) for key, one in final_weights(checked).items())


def test_data_that_cannot_be_measured_ends_it_before_the_first_step(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    write_chunks(tmp_path / "foreign", [np.full(333, VOCAB + 400)])
    foreign = data.validation[0].model_copy(update={"folder": str(tmp_path / "foreign")})
    data = data.model_copy(update={"validation": (foreign,)})
    steps = {}
    for batches in (None, 2):
        run = make_run(tmp_path / str(batches), data, CHECKED | {"validation.sanity_batches": batches})
        fail(run)
        steps[batches] = len(list(run.rows("steps")))
    assert steps == {None: 3, 2: 0}
    resumed = RunDir(str(tmp_path / "None"))  # from step 2: then nothing is asked before the steps
    fail(resumed, {"validation.sanity_batches": 2})
    assert [row["step"] for row in resumed.attempt_rows("steps", 1)] == [3]


def test_a_fresh_model_whose_loss_is_no_number_is_an_error(tmp_path: Path) -> None:
    code = OwnSource("mine.py", BROKEN.encode())
    run = make_run(tmp_path / "run", write_data(tmp_path / "data"), CHECKED | {"code": frozen_name(code)})
    write_frozen(run, code)
    fail(run)
    (error,) = run.errors(0)
    assert "sanity_batches: the loss on held-out data (main) is nan before the first step" in error["message"]


def fail(run: RunDir, overrides: dict[str, Any] | None = None) -> None:
    (worker,) = start_workers(run, 1, overrides)
    assert worker.wait(timeout=60) == 1
