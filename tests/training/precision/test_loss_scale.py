"""The scale of the loss in fp16: it leaves the result as it is, and steps that overflow are skipped by all ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launchyard.run.rundir import RunDir
from launchyard.storage.shards import read_manifest
from launchyard.training.precision.loss_scale import GROWTH_STEPS, next_scale
from launchyard.training.spec import DataSpec
from tests.support.small_runs import final_weights, history, make_run, run_workers, write_data


def test_a_scale_falls_at_once_and_grows_after_a_while() -> None:
    scale, steps = next_scale(1024.0, 5, overflowed=True)
    assert (scale, steps) == (512.0, 0)
    for _ in range(GROWTH_STEPS - 1):
        scale, steps = next_scale(scale, steps, overflowed=False)
        assert scale == 512.0
    assert next_scale(scale, steps, overflowed=False) == (1024.0, 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


def state_of(run: RunDir) -> dict[str, object]:
    from launchyard.run.checkpoints import committed_steps

    return read_manifest(run.path(run.checkpoint_dir(committed_steps(run)[-1]))).train_state


def test_overflowing_steps_are_skipped_by_all_and_resumed(tmp_path: Path, data: DataSpec) -> None:
    """Table and head have a large gain here, so the first scale is too high."""
    overrides = {"train.precision": "16-mixed", "train.max_steps": 12, "schedule.name": "constant"}
    overrides |= {"model.logit_scale": 64.0}
    expected = make_run(tmp_path / "undisturbed", data, overrides)
    run = make_run(tmp_path / "resumed", data, overrides)
    run_workers(expected, 2)
    run_workers(run, 2, {"train.max_steps": 2})
    run_workers(run, 2, {"train.max_steps": 12})
    assert history(run) == history(expected) and state_of(run) == state_of(expected)
    skipped = [row["step"] for row in run.rows("steps") if row["grad_norm"] is None]
    assert skipped and skipped[0] == 1 and len(skipped) < 12
    state = state_of(run)
    assert state["skipped_steps"] == len(skipped) and state["loss_scale"] == 65536.0 / 2 ** len(skipped)
    mine, theirs = final_weights(run), final_weights(expected)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert all(torch.isfinite(tensor).all() for tensor in mine.values())
    one = make_run(tmp_path / "one", data, overrides)
    run_workers(one, 1)
    for row, other in zip(one.rows("steps"), expected.rows("steps"), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=5e-3)
