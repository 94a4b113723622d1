"""Runs that train an adapter: saved with what trains alone, resumed exactly on any ranks, read as the merged model."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameters
from launchyard.model.network.init import initial_rows
from launchyard.model.weights.load import open_weights
from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.storage.shards import read_manifest
from launchyard.training.spec import DataSpec
from tests.support.small_runs import MODEL, final_weights, history, make_run, run_workers, start_workers, write_data

CONFIG = ModelConfig.model_validate(MODEL)
KINDS = {
    "lora": Adapter(kind="lora", r=4),
    "dora": Adapter(kind="dora", r=4, targets=("q_proj", "lm_head"), trained=("norm.*",)),
    "qlora": Adapter(kind="qlora", r=4),
    "bitfit": Adapter(kind="bitfit"),
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


def adapter_run(folder: Path, data: DataSpec, adapter: Adapter) -> RunDir:
    run = make_run(folder, data, {"schedule.name": "constant", "schedule.warmup_steps": 0, "optimizer.lr": 0.01})
    run.write_json("plan.json", {**run.read_json("plan.json"), "adapter": adapter.model_dump(mode="json")})
    return run


def newest(run: RunDir) -> str:
    return run.path(run.checkpoint_dir(committed_steps(run)[-1]))


def same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("adapter", KINDS.values(), ids=KINDS)
def test_a_killed_and_resumed_run_is_the_run_that_was_not(tmp_path: Path, data: DataSpec, adapter: Adapter) -> None:
    expected, run = (adapter_run(tmp_path / name, data, adapter) for name in ("undisturbed", "killed"))
    run_workers(expected, 1)
    (process,) = start_workers(run, 1)
    deadline = time.monotonic() + 60
    while not committed_steps(run) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run_workers(run, 1)
    assert history(run) == history(expected)
    assert same(final_weights(run), final_weights(expected))
    losses = [loss for _, loss in history(run, ("step", "loss"))]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("adapter", KINDS.values(), ids=KINDS)
def test_ranks_train_what_one_process_trains(tmp_path: Path, data: DataSpec, adapter: Adapter) -> None:
    alone, run = (adapter_run(tmp_path / name, data, adapter) for name in ("alone", "resized"))
    run_workers(alone, 1)
    run_workers(run, 1, {"train.max_steps": 8})
    run_workers(run, 2, {"train.max_steps": 16})
    run_workers(run, 1)
    assert history(run, ("step", "data_hash")) == history(alone, ("step", "data_hash"))
    mine, theirs = final_weights(run), final_weights(alone)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_a_run_in_bf16_is_resumed_exactly_and_trained_alike_on_two_ranks(
    tmp_path: Path, data: DataSpec, kind: str
) -> None:
    bf16 = {"train.precision": "bf16"}
    whole, parted, ranks = (adapter_run(tmp_path / name, data, KINDS[kind]) for name in ("a", "b", "c"))
    run_workers(whole, 1, bf16)
    run_workers(parted, 1, bf16 | {"train.max_steps": 8})
    run_workers(parted, 1, bf16)
    assert history(parted) == history(whole)
    assert same(final_weights(parted), final_weights(whole))
    run_workers(ranks, 2, bf16)
    assert history(ranks, ("step", "data_hash")) == history(whole, ("step", "data_hash"))
    for (mine,), (theirs,) in zip(history(ranks, ("loss",)), history(whole, ("loss",)), strict=True):
        assert mine == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_has_what_trains_alone_and_is_read_as_the_merged_model(
    tmp_path: Path, data: DataSpec, kind: str
) -> None:
    adapter = KINDS[kind]
    run = adapter_run(tmp_path / "run", data, adapter)
    run_workers(run, 1, {"checkpoint.export": True})
    trained = {name for name, parameter in parameters(CONFIG, adapter).items() if parameter.trained}
    saved = {key.removeprefix("model.") for key in read_manifest(newest(run)).tensors if key.startswith("model.")}
    assert saved == trained
    config, weights = open_weights(newest(run))
    _, exported = open_weights(run.path("weights"))
    for name, parameter in parameters(config).items():
        assert torch.equal(weights.get(name), exported.get(name)), name
        first = initial_rows(CONFIG, name, parameter.shape, seed=1)
        if kind != "qlora":
            touched = name in trained or f"{name.removesuffix('weight')}lora_a" in trained
            assert torch.equal(weights.get(name), first) != touched, name


def test_updates_of_a_bf16_run_are_merged_onto_the_rounded_base_that_they_were_trained_over(
    tmp_path: Path, data: DataSpec
) -> None:
    run = adapter_run(tmp_path / "run", data, KINDS["lora"])
    run_workers(run, 1, {"train.precision": "bf16", "train.max_steps": 2})
    saved = final_weights(run)
    _, weights = open_weights(newest(run))
    for name, parameter in parameters(CONFIG).items():
        base = initial_rows(CONFIG, name, parameter.shape, seed=1).bfloat16().float()
        update = f"model.{name.removesuffix('weight')}lora_"
        if f"{update}a" in saved:
            base += saved[f"{update}b"] @ saved[f"{update}a"] * 4  # alpha 16 / r 4
        torch.testing.assert_close(weights.get(name), base, rtol=0, atol=1e-6)


def test_another_adapter_is_refused(tmp_path: Path, data: DataSpec) -> None:
    """Another alpha would be another model, of the same shapes."""
    run = adapter_run(tmp_path / "run", data, KINDS["lora"])
    run_workers(run, 1, {"train.max_steps": 8})
    other = Adapter(kind="lora", r=4, alpha=32.0)
    run.write_json("plan.json", {**run.read_json("plan.json"), "adapter": other.model_dump(mode="json")})
    (process,) = start_workers(run, 1)
    assert process.wait(timeout=120) == 1
    assert "its frozen parameters come from" in run.errors(1)[0]["message"]
