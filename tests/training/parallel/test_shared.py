"""Workers that share matrices: the run of one worker, whatever a resume makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from launchyard.model.config import ModelConfig
from launchyard.model.parallel.share import check_shared_training
from launchyard.model.parallel.trained import SharedTransformer, TensorRanks
from launchyard.run.rundir import RunDir
from launchyard.training.spec import DataSpec
from tests.support.ranks import run_ranks
from tests.support.small_runs import VOCAB, final_weights, history, make_run, run_workers, write_data
from tests.support.tiny_models import llama, random_model, random_tokens
from tests.training.parallel.test_levels import assert_near

MODEL = {
    "family": "llama", "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64, "vocab_size": VOCAB,
    "max_seq_len": 64, "qk_norm": "head", "tie_embeddings": True,
}  # fmt: skip
RUN: dict[str, Any] = {
    "model": MODEL, "data.seq_len": 14, "train.max_steps": 12, "schedule.name": "constant", "validation.every_steps": 3,
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


@pytest.mark.parametrize("key", ["tp", "cp"])
def test_a_resumed_run_is_the_run_that_was_not_and_that_of_one_worker(
    tmp_path: Path, data: DataSpec, whole: RunDir, key: str
) -> None:
    shared = {**RUN, f"parallel.{key}": 2}
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
    for number, (nproc, tp, cp) in enumerate(((2, 2, 1), (4, 2, 2), (2, 1, 2), (1, 1, 1)), start=1):
        shared = {"parallel.tp": tp, "parallel.cp": cp}
        run_workers(run, nproc, {**shared, "train.max_steps": 3 * number})
    assert_near(run, whole)


def _odd() -> None:
    """A stream whose length is no multiple of the ranks is padded where it is cut, and nowhere else."""
    dist.init_process_group("gloo")
    assert dist.group.WORLD is not None
    ranks = TensorRanks(dist.get_rank(), 2, dist.group.WORLD)
    config = ModelConfig.model_validate(MODEL)
    whole = random_model(config).train()
    model = SharedTransformer(config, ranks)
    for name, parameter in model.named_parameters():
        cut = model.cuts[name]
        values = whole.get_parameter(name).detach()
        own = values if cut is None else values.narrow(cut.axis, cut.places.start, len(cut.places))
        parameter.data = own.clone()
    tokens = random_tokens(config, 2, 15)
    for one in (whole, model):
        one(tokens).square().sum().backward()
    torch.testing.assert_close(model(tokens), whole(tokens))
    torch.testing.assert_close(model.embed.weight.grad, whole.embed.weight.grad)
    norm = ranks.summed(model.blocks[0].mlp_norm.weight.grad)
    torch.testing.assert_close(norm, whole.blocks[0].mlp_norm.weight.grad)
    dist.destroy_process_group()


def test_a_stream_of_an_odd_length_is_cut() -> None:
    run_ranks(2, _odd)


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
