"""Runs that meet a batch which harms them: left out or gone back over, alike by any ranks and after any kill."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launchyard.launcher.runs.fsck import check_run
from launchyard.launcher.runs.why import explain
from launchyard.model.config import ModelConfig
from launchyard.model.weights.hf_export import save_hf
from launchyard.run.checkpoints import committed_steps, newest_checkpoint
from launchyard.run.rundir import RunDir
from launchyard.storage.shards import read_manifest
from launchyard.training.data.reader import TokenReader
from launchyard.training.data.token_store import TokenStore
from launchyard.training.spec import DataSpec, TokenSource
from tests.support.small_runs import (
    MODEL,
    VOCAB,
    final_weights,
    history,
    make_run,
    run_workers,
    start_workers,
    write_chunks,
)
from tests.support.tiny_models import random_model, weights_of

STEPS, BAD = 44, 33  # the step, counted from 1, whose batch harms
POISON = VOCAB - 1  # a token that stands in no other batch
SHORT = {"train.max_steps": STEPS, "checkpoint.every_steps": 7, "schedule.warmup_steps": 0, "optimizer.lr": 1e-2}
SPIKES = SHORT | {"stability.spike_factor": 3.0, "stability.rewind_steps": 6}


def write_tokens(folder: Path, change: Any) -> DataSpec:
    """Tokens that are easily learnt, but for those of one step; `change` makes of a sample's tokens something else."""
    n = STEPS * 12 * 16 + 400
    tokens = (np.arange(n) % 4).astype(np.uint16)
    write_chunks(folder / "plain", [tokens])
    reader = TokenReader([TokenStore(str(folder / "plain"))], weights=[1], seq_len=16, global_batch_size=12, seed=3)
    for _, sample in reader.sample_ids(BAD - 1, 0, 12):
        change(tokens[sample * 16 + 1 : sample * 16 + 16])
    write_chunks(folder / "train", [tokens])
    return DataSpec(
        train=(TokenSource(folder=str(folder / "train"), n_tokens=n),), validation=(), tokenizer=None, digest="d"
    )


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    """Its bad batch is random tokens."""
    rng = np.random.default_rng(0)

    def change(tokens: np.ndarray) -> None:
        tokens[:] = rng.integers(0, VOCAB, len(tokens))

    return write_tokens(tmp_path_factory.mktemp("noisy"), change)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSpec, dict[str, Any]]:
    """Its bad batch holds a token whose row of the table is no number; and overrides that name these weights."""

    def change(tokens: np.ndarray) -> None:
        tokens[5] = POISON

    folder = tmp_path_factory.mktemp("poisoned")
    config = ModelConfig.model_validate(MODEL)
    weights = weights_of(random_model(config, std=0.02))
    weights["embed.weight"][POISON] = torch.nan
    save_hf(weights, config, str(folder / "init"))
    return write_tokens(folder, change), {"model.init_from": str(folder / "init")}


def same(one: RunDir, other: RunDir) -> bool:
    mine, theirs = final_weights(one), final_weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def steps_of(run: RunDir) -> list[int]:
    return [row["step"] for row in run.rows("steps")]


def state_of(run: RunDir) -> dict[str, Any]:
    return read_manifest(run.path(run.checkpoint_dir(newest_checkpoint(run) or 0))).train_state


def heard(run: RunDir) -> list[tuple[str, int | None]]:
    return [(event["event"], event.get("step")) for event in run.events(0)]


def kill_after(run: RunDir, nproc: int, event: str, step: int) -> None:
    """SIGKILL for all workers as soon as an event is on record."""
    processes = start_workers(run, nproc)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (event, step) not in heard(run):
        time.sleep(0.002)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_a_loss_that_is_no_number_costs_one_update(tmp_path: Path, poisoned: tuple[DataSpec, dict[str, Any]]) -> None:
    """And no batch: the next step reads its own."""
    data, weights = poisoned
    run = make_run(tmp_path / "run", data, SHORT | {"stability.on_nonfinite": "skip"})
    run_workers(run, 1, weights)
    assert steps_of(run) == [step for step in range(1, STEPS + 1) if step != BAD]
    state = state_of(run)
    assert (state["step"], state["left_out"], state["interventions"]) == (STEPS, [BAD], 1)
    assert state["tokens_seen"] == pytest.approx((STEPS - 1) * 12 * 16, abs=16)
    (event,) = [one for one in run.events(0) if one["event"] == "update skipped"]
    assert (event["step"], event["cause"], event["loss"]) == (BAD, "nonfinite", "nan")
    assert data.train[0].folder in event["data"]
    assert f"step {BAD} (its loss was no number)" in explain(run).text


def test_without_a_word_it_ends_the_run(tmp_path: Path, poisoned: tuple[DataSpec, dict[str, Any]]) -> None:
    data, weights = poisoned
    run = make_run(tmp_path / "run", data, SHORT)
    (process,) = start_workers(run, 1, weights)
    assert process.wait(timeout=60) == 1
    (error,) = run.errors(0)
    assert error["type"] == "NonFiniteError" and error["message"].startswith(f"step {BAD}:")
    assert "stability.on_nonfinite=skip" in error["message"]


@pytest.mark.parametrize("nproc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_rewind_is_the_run_that_never_saw_those_batches(tmp_path: Path, noisy: DataSpec, nproc: int) -> None:
    """However it is cut by kills, and wherever its checkpoints lie."""
    options = SPIKES | {"stability.on_spike": "rewind"}
    whole, killed, sparse = (make_run(tmp_path / name, noisy, options) for name in ("whole", "killed", "sparse"))
    run_workers(whole, nproc)
    taken = list(range(BAD - 5, BAD + 1))
    assert steps_of(whole) == [step for step in range(1, STEPS + 1) if step not in taken]
    state = state_of(whole)
    assert (state["left_out"], state["interventions"]) == (taken, 1)
    (event,) = [one for one in whole.events(0) if one["event"] == "rewound"]
    assert (event["step"], event["checkpoint"], event["at"], event["n_steps"]) == (BAD - 6, 21, BAD, 6)
    kill_after(killed, nproc, "rewound", BAD - 6)
    run_workers(killed, nproc)
    assert history(killed) == history(whole) and same(killed, whole)
    late = make_run(tmp_path / "late", noisy, options)
    kill_after(late, nproc, "saved", 28)  # a step that the next attempt goes on from, and takes back
    run_workers(late, nproc)
    assert late.starts() == {0: 0, 1: 28}
    assert history(late) == history(whole) and same(late, whole)
    assert not [one for run in (whole, killed, late) for one in check_run(run).problems if "has no rows" in str(one)]
    assert f"back from step {BAD} to step {BAD - 6}" in explain(killed).text
    run_workers(sparse, nproc, {"checkpoint.every_steps": 40})  # back to the first weights
    assert history(sparse) == history(whole) and same(sparse, whole)


BEGUN = {
    "adamw-schedule-free": {"optimizer.name": "adamw-schedule-free", "schedule.name": "constant"},
    "lion": {"optimizer.name": "lion", "train.ema_decay": 0.9},
    "adafactor": {
        "optimizer.name": "adafactor",
        "optimizer.lr": 0.3,
        "train.precision": "bf16-true",
        "train.ema_decay": 0.9,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BEGUN)
def test_a_rewind_begins_every_optimizer_again(tmp_path: Path, noisy: DataSpec, name: str) -> None:
    """To a checkpoint, or to the first weights: with the same state either way."""
    options = SPIKES | {"stability.on_spike": "rewind"} | BEGUN[name]
    whole, sparse = (make_run(tmp_path / one, noisy, options) for one in ("whole", "sparse"))
    run_workers(whole, 1)
    (event,) = [one for one in whole.events(0) if one["event"] == "rewound"]
    assert (event["step"], event["checkpoint"]) == (BAD - 6, 21)
    run_workers(sparse, 1, {"checkpoint.every_steps": 40})
    assert history(sparse) == history(whole) and same(sparse, whole)


@pytest.mark.slow
def test_retention_leaves_a_checkpoint_to_go_back_to(tmp_path: Path, noisy: DataSpec) -> None:
    often = SPIKES | {"stability.on_spike": "rewind", "checkpoint.every_steps": 2, "checkpoint.keep": 1}
    run = make_run(tmp_path / "run", noisy, often)
    run_workers(run, 1)
    (event,) = [one for one in run.events(0) if one["event"] == "rewound"]
    assert 0 < event["checkpoint"] <= event["step"] == BAD - 6


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_gone_does_not_start_over(tmp_path: Path, noisy: DataSpec) -> None:
    """Which would train for as long again, without a word."""
    few = {"checkpoint.every_steps": 2, "checkpoint.keep": 1, "stability.on_nonfinite": "skip"}
    run = make_run(tmp_path / "run", noisy, SPIKES | few)
    run_workers(run, 1, {"train.max_steps": BAD - 2})
    (process,) = start_workers(run, 1, {"stability.on_spike": "rewind", "train.max_steps": STEPS})
    assert process.wait(timeout=60) == 1
    (error,) = run.errors(1)
    assert error["type"] == "UnstableError" and "checkpoint.keep" in error["message"]
    assert committed_steps(run)[-1] >= BAD - 2


@pytest.mark.slow
@pytest.mark.parametrize("action", ["skip", "rewind"])
def test_two_ranks_agree_with_one(tmp_path: Path, noisy: DataSpec, action: str) -> None:
    options = SPIKES | {"stability.on_spike": action}
    one, two = (make_run(tmp_path / name, noisy, options) for name in ("one", "two"))
    run_workers(one, 1)
    run_workers(two, 2)
    assert history(one, ("step", "data_hash", "tokens_seen")) == history(two, ("step", "data_hash", "tokens_seen"))
    assert state_of(one)["left_out"] == state_of(two)["left_out"] != []
    for mine, theirs in zip(history(one, ("loss",)), history(two, ("loss",)), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_a_guard_that_finds_nothing_changes_nothing(tmp_path: Path, noisy: DataSpec) -> None:
    options = {**SPIKES, "train.max_steps": 20}
    plain, guarded = (make_run(tmp_path / name, noisy, options) for name in ("plain", "guarded"))
    run_workers(plain, 1)
    run_workers(guarded, 1, {"stability.on_spike": "skip", "stability.on_nonfinite": "rewind"})
    assert history(plain) == history(guarded) and same(plain, guarded)
