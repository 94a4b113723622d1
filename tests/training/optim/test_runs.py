"""Runs by each optimizer: killed and resumed they are the run that was not, over one worker or two."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.storage.shards import read_manifest, read_tensor
from launchyard.training.spec import DataSpec
from tests.support.small_runs import final_weights, history, make_run, run_workers, start_workers, write_data
from tests.training.optim.toy import FULL, GROUPS

LONG = {"train.max_steps": 60, "checkpoint.every_steps": 6, "validation.every_steps": 7}
OTHERS = [name for name in FULL if name != "adamw"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


def keys_of(name: str, **changes: Any) -> dict[str, Any]:
    """A schedule of its own each, where the optimizer has no say in that."""
    schedule = {"lion": "wsd", "muon": "inverse-sqrt", "adamw-schedule-free": "constant", "sgd": "polynomial"}
    optimizer = {"name": name, "lr": 3e-3, "groups": GROUPS, **FULL[name]}
    return {"optimizer": optimizer, "schedule.name": schedule.get(name, "cosine"), **changes}


def run_of(folder: Path, data: DataSpec, nproc: int, overrides: dict[str, Any]) -> RunDir:
    run = make_run(folder, data, overrides)
    run_workers(run, nproc)
    return run


def validated(run: RunDir) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in run.rows("validation")]


def kill_after_a_save(run: RunDir, nproc: int) -> None:
    processes = start_workers(run, nproc)
    deadline = time.monotonic() + 60
    while not committed_steps(run) and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in processes:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "adafactor" else pytest.mark.slow) for name in OTHERS]
)
def test_killed_and_resumed_it_is_the_run_that_was_not(tmp_path: Path, data: DataSpec, name: str) -> None:
    assert_unseen_kill(tmp_path, data, keys_of(name, **LONG))


def assert_unseen_kill(tmp_path: Path, data: DataSpec, overrides: dict[str, Any]) -> None:
    expected = run_of(tmp_path / "undisturbed", data, 2, overrides)
    run = make_run(tmp_path / "killed", data, overrides)
    kill_after_a_save(run, 2)
    run_workers(run, 2)
    assert next(e["step"] for e in run.events(1) if e["event"] == "started") > 0
    assert history(run) == history(expected)
    assert validated(run) == validated(expected)
    mine, theirs = final_weights(run), final_weights(expected)
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_two_workers_are_one_and_a_resized_run_is_both(tmp_path: Path, data: DataSpec, name: str) -> None:
    """Up to rounding; a sign, or bf16, makes more of that than a sum does."""
    overrides = keys_of(name, **{"train.max_steps": 20, "schedule.name": "constant"})  # which no length stretches
    one = run_of(tmp_path / "one", data, 1, overrides)
    two = run_of(tmp_path / "two", data, 2, overrides)
    resized = make_run(tmp_path / "resized", data, overrides)
    for nproc, last in ((2, 7), (1, 14), (3, 20)):
        run_workers(resized, nproc, {"train.max_steps": last} if last < 20 else {})
    rel = {"lion": 2e-3, "muon": 2e-3}.get(name, 1e-4)
    for other in (two, resized):
        assert [row[-1] for row in history(other)] == [row[-1] for row in history(one)]
        assert [row[1] for row in history(other)] == pytest.approx([row[1] for row in history(one)], rel=rel)
        assert validated(other)[-1] == pytest.approx(validated(one)[-1], rel=rel)


BESIDE = {
    "lion": {"train.precision": "bf16-true", "train.bf16_rounding": "compensated", "train.ema_decay": 0.9},
    "adafactor": {"train.precision": "bf16-true", "train.ema_decay": 0.9, "validation.ema": True},
    "adamw-8bit": {"train.precision": "fp16-mixed", "train.ema_decay": 0.9},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BESIDE)
def test_a_kill_is_not_seen_beside_other_precisions_and_an_average(tmp_path: Path, data: DataSpec, name: str) -> None:
    assert_unseen_kill(tmp_path, data, keys_of(name, **LONG, **BESIDE[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "lion", "adamw-schedule-free"])
def test_workers_that_share_matrices_are_one(tmp_path: Path, data: DataSpec, name: str) -> None:
    """Also of a run that others began and others end."""
    overrides = keys_of(name, **{"train.max_steps": 20, "schedule.name": "constant"})
    one = run_of(tmp_path / "one", data, 1, overrides)
    shared = make_run(tmp_path / "shared", data, overrides)
    for nproc, tp, last in ((2, 2, 7), (1, 1, 11), (4, 2, 16), (2, 2, 20)):
        run_workers(shared, nproc, {"parallel.tp": tp} | ({"train.max_steps": last} if last < 20 else {}))
    assert [row[-1] for row in history(shared)] == [row[-1] for row in history(one)]
    assert [row[1] for row in history(shared)] == pytest.approx([row[1] for row in history(one)], rel=2e-3)
    assert validated(shared)[-1] == pytest.approx(validated(one)[-1], rel=2e-3)


@pytest.mark.slow
def test_a_schedule_free_run_validates_and_keeps_its_average(tmp_path: Path, data: DataSpec) -> None:
    """Validations change no step; what is saved as the model is what the last of them has measured."""
    overrides = keys_of("adamw-schedule-free", **{"train.max_steps": 12, "checkpoint.every_steps": 12})
    quiet = run_of(tmp_path / "quiet", data, 1, {**overrides, "validation.every_steps": None})
    often = run_of(tmp_path / "often", data, 1, {**overrides, "validation.every_steps": 1})
    assert history(quiet) == history(often)
    mine, theirs = final_weights(quiet), final_weights(often)
    assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []
    assert loss_of(often, "model.") == pytest.approx(validated(often)[-1][1], rel=1e-5)
    assert loss_of(often, "optimizer.", ".z") != pytest.approx(validated(often)[-1][1], rel=1e-3)


def loss_of(run: RunDir, before: str, behind: str = "") -> float:
    """On the held-out data, of the newest checkpoint with these tensors as its weights."""
    from launchyard.model.config import ModelConfig
    from launchyard.model.network.transformer import Transformer
    from launchyard.training.batching import BatchSizes
    from launchyard.training.data.open_reader import open_reader
    from launchyard.training.objectives.next_token import NextToken
    from launchyard.training.recipe import recipe_of
    from launchyard.training.spec import read_workload
    from launchyard.training.validation.held_out import validation_means

    folder = run.path(run.checkpoint_dir(committed_steps(run)[-1]))
    manifest = read_manifest(folder)
    model = Transformer(ModelConfig.model_validate(manifest.model))
    for name, p in model.named_parameters():
        p.data.copy_(read_tensor(folder, manifest, f"{before}{name}{behind}"))
    recipe, workload = recipe_of(run, 0), read_workload(run)
    reader = open_reader(workload.data.validation, recipe=recipe, training=False, global_batch_size=12, cache=None)
    found = validation_means(
        model, reader, NextToken(), sizes=BatchSizes(12, 12, 1, 1), data_rank=0, device=torch.device("cpu"),
        max_batches=None,
    )  # fmt: skip
    assert found is not None
    return found[0]
