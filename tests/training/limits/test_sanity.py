"""A few batches of validation before the first step: they change and record nothing, and their failure is no step's."""

from __future__ import annotations

import math
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from launchyard.training.loop import sanity
from launchyard.training.loop.measure import Measured
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
        (worker,) = start_workers(run, 1)
        assert worker.wait(timeout=60) == 1
        steps[batches] = len(list(run.rows("steps")))
    assert steps == {None: 3, 2: 0}


def test_a_loss_that_is_no_number_is_an_error_and_a_resume_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = MagicMock()
    parts.context.recipe.validation.sanity_batches = 2
    parts.learner.state.step = 0
    monkeypatch.setattr(sanity, "measure", lambda *args, **kwargs: {"main": Measured({"loss": math.nan}, 0.0)})
    with pytest.raises(ValueError, match=r"sanity_batches: the loss on held-out data \(main\) is nan"):
        sanity.check_validation(parts)
    parts.learner.state.step = 5
    sanity.check_validation(parts)
