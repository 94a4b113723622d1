"""Workers that share matrices: the run of one worker, whatever a resume makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from launchyard.model.config import ModelConfig
from launchyard.model.parallel.share import check_shared_training
from launchyard.run.rundir import RunDir
from launchyard.training.spec import DataSpec
from tests.support.small_runs import VOCAB, final_weights, history, make_run, run_workers, write_data
from tests.support.tiny_models import llama
from tests.training.parallel.test_levels import assert_near

MODEL = {
    "family": "llama", "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64, "vocab_size": VOCAB,
    "max_seq_len": 64, "qk_norm": "head", "tie_embeddings": True,
}  # fmt: skip
RUN: dict[str, Any] = {
    "model": MODEL, "data.seq_len": 15, "train.max_steps": 12, "schedule.name": "constant", "validation.every_steps": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: DataSpec) -> RunDir:
    """Of one worker."""
    run = make_run(tmp_path_factory.mktemp("whole") / "run", data, RUN)
    run_workers(run, 1)
    return run


def assert_same(run: RunDir, expected: RunDir) -> None:
    assert history(run) == history(expected)
    mine, theirs = final_weights(run), final_weights(expected)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_a_resumed_run_is_the_run_that_was_not_and_that_of_one_worker(
    tmp_path: Path, data: DataSpec, whole: RunDir
) -> None:
    shared = {**RUN, "parallel.tp": 2}
    expected, run = make_run(tmp_path / "undisturbed", data, shared), make_run(tmp_path / "resumed", data, shared)
    run_workers(expected, 2)
    run_workers(run, 2, {"train.max_steps": 7})
    run_workers(run, 2, {"train.max_steps": 12})
    assert_same(run, expected)
    assert_near(expected, whole)
    ours, theirs = final_weights(run), final_weights(whole)
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=5e-5)


@pytest.mark.slow
def test_a_resume_may_share_otherwise(tmp_path: Path, data: DataSpec, whole: RunDir) -> None:
    """Parts of rows and of columns are joined and cut again."""
    run = make_run(tmp_path / "run", data, RUN)
    for number, (nproc, shared) in enumerate(((2, 2), (4, 2), (2, 1), (1, 1)), start=1):
        run_workers(run, nproc, {"parallel.tp": shared, "train.max_steps": 3 * number})
    assert_near(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "bf16-true", "fp16-mixed"])
def test_precisions_are_shared(tmp_path: Path, data: DataSpec, whole: RunDir, precision: str) -> None:
    run = make_run(tmp_path / "run", data, {**RUN, "train.precision": precision, "parallel.tp": 2})
    run_workers(run, 2, {"train.max_steps": 7})
    run_workers(run, 2, {"train.max_steps": 12})
    for mine, theirs in zip(history(run), history(whole), strict=True):
        assert mine[1] == pytest.approx(theirs[1], rel=2e-2) and mine[4:] == theirs[4:]


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"n_kv_heads": 1}, "n_kv_heads"),
        ({"qk_norm": "width"}, "whole width"),
        ({"moe": {"n_experts": 4, "top_k": 2, "ffn_dim": 16}}, "experts"),
    ],
)
def test_what_cannot_be_shared_is_said(knobs: dict[str, Any], named: str) -> None:
    config = ModelConfig.model_validate({**llama().model_dump(exclude_none=True), **knobs})
    with pytest.raises(ValueError, match=named):
        check_shared_training(config, 2)
