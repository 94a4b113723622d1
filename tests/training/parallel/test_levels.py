"""Levels of sharding, offload and recomputation: one and the same run, whichever of them a resume chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from launchyard.model.config import ModelConfig
from launchyard.model.memory import Savings
from launchyard.run.rundir import RunDir
from launchyard.storage.shards import read_manifest, read_tensor
from launchyard.training.build import build_model
from launchyard.training.distributed import connect, disconnect, read_world
from launchyard.training.recipe import Recipe
from launchyard.training.spec import DataSpec
from tests.model.live_bytes import trained_peak
from tests.support.small_runs import MODEL, final_weights, history, make_run, run_workers, write_data
from tests.support.tiny_models import llama

RUN = {"train.max_steps": 12, "schedule.name": "constant", "validation.every_steps": 3, "checkpoint.every_steps": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: DataSpec) -> RunDir:
    """Of one worker."""
    run = make_run(tmp_path_factory.mktemp("whole") / "run", data, RUN)
    run_workers(run, 1)
    return run


def validation(run: RunDir) -> list[float]:
    return [row["loss"] for row in run.rows("validation")]


def assert_near(run: RunDir, other: RunDir) -> None:
    for mine, theirs in zip(history(run), history(other), strict=True):
        assert mine[1:3] == (pytest.approx(theirs[1], rel=1e-5), pytest.approx(theirs[2], rel=1e-4))
        assert mine[3:] == theirs[3:]
    assert validation(run) == pytest.approx(validation(other), rel=1e-5)


@pytest.mark.parametrize("level", [0, pytest.param(2), pytest.param(3, marks=pytest.mark.slow)])
def test_a_level_of_two_workers_gives_the_run_of_one(tmp_path: Path, data: DataSpec, whole: RunDir, level: int) -> None:
    """And it saves that one's weights, also right after a validation, which leaves none gathered."""
    run = make_run(tmp_path / "run", data, {**RUN, "parallel.shard_level": level})
    run_workers(run, 2)
    assert_near(run, whole)
    mine, theirs = weights_at(run, 9), weights_at(whole, 9)
    for key in theirs:
        torch.testing.assert_close(mine[key], theirs[key], rtol=1e-3, atol=1e-5)


def weights_at(run: RunDir, step: int) -> dict[str, torch.Tensor]:
    folder = run.path(run.checkpoint_dir(step))
    manifest = read_manifest(folder)
    return {key: read_tensor(folder, manifest, key) for key in manifest.tensors}


@pytest.mark.slow
def test_resumes_may_change_all_of_them(tmp_path: Path, data: DataSpec, whole: RunDir) -> None:
    run = make_run(tmp_path / "run", data, RUN)
    changes: list[tuple[int, dict[str, Any]]] = [
        (2, {"parallel.shard_level": 2, "parallel.activation_checkpointing": "op"}),
        (3, {"parallel.shard_level": 0, "parallel.activation_checkpointing_every": 2}),
        (2, {"parallel.shard_level": 3, "parallel.cpu_offload": True}),
        (1, {"parallel.cpu_offload": False, "parallel.activation_checkpointing": "none"}),
    ]
    given: dict[str, Any] = {}
    for number, (nproc, changed) in enumerate(changes, start=1):
        given |= changed
        run_workers(run, nproc, {**given, "train.max_steps": 3 * number})
    assert_near(run, whole)


@pytest.mark.slow
def test_a_level_is_resumed_bit_for_bit(tmp_path: Path, data: DataSpec) -> None:
    for level in (0, 2):
        overrides = {**RUN, "parallel.shard_level": level}
        expected, run = (make_run(tmp_path / f"{name}{level}", data, overrides) for name in ("whole", "resumed"))
        run_workers(expected, 2)
        run_workers(run, 2, {"train.max_steps": 7})
        run_workers(run, 2, {"train.max_steps": 12})
        assert history(run) == history(expected)
        mine, theirs = final_weights(run), final_weights(expected)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_offload_reaches_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import fsdp

    policies = []
    real = fsdp.fully_shard

    def spy(module: Any, **options: Any) -> Any:
        policies.append(type(options["offload_policy"]).__name__)
        return real(module, **options)

    monkeypatch.setattr(fsdp, "fully_shard", spy)
    connect(read_world(), torch.device("cpu"))
    try:
        for offload in (True, False):
            recipe = Recipe.model_validate({
                "name": "x", "model": MODEL, "data": {"source": "x"}, "parallel": {"cpu_offload": offload},
                "train": {"max_steps": 1, "precision": "bf16"},
            })  # fmt: skip
            build_model(ModelConfig.model_validate(MODEL), recipe, world_size=1, device=torch.device("cpu"))
            assert set(policies) == {"CPUOffloadPolicy" if offload else "OffloadPolicy"}
            policies.clear()
    finally:
        disconnect()


def test_less_is_kept_the_more_is_made_again() -> None:
    ways = (Savings(), Savings("op"), Savings("full", every=2), Savings("full"))
    found = [trained_peak(llama(n_layers=4), micro_batch_size=8, seq_len=32, savings=way) for way in ways]
    assert found[0] > found[1] > found[3] and found[0] > found[2] > found[3]
