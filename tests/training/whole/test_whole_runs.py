"""What whole runs owe whoever starts one: they learn, save and validate as they are told, and say what made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launchyard.model.config import ModelConfig
from launchyard.model.weights.hf_export import save_hf
from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.storage.shards import read_manifest
from launchyard.training.optim.schedule import lr_at
from launchyard.training.recipe import Recipe, apply_overrides
from launchyard.training.spec import DataSpec, TokenSource
from tests.support.small_runs import (
    MODEL,
    RECIPE,
    final_weights,
    history,
    make_run,
    run_workers,
    write_chunks,
    write_data,
)
from tests.support.tiny_models import random_model, weights_of

TOLD: dict[str, Any] = {
    "train.max_steps": 11, "train.global_batch_size": 4, "checkpoint.every_steps": 3, "validation.every_steps": 4,
    "validation.at_start": True, "schedule.warmup_steps": 2, "model.tie_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: DataSpec) -> RunDir:
    return trained(tmp_path_factory.mktemp("runs") / "run", data, TOLD)


def trained(folder: Path, data: DataSpec, overrides: dict[str, Any]) -> RunDir:
    made = make_run(folder, data, overrides)
    run_workers(made, 1)
    return made


def test_a_text_that_repeats_is_learned(tmp_path: Path) -> None:
    """From scratch to next to nothing: every token follows from the one before."""
    write_chunks(tmp_path / "train", [np.resize(np.arange(23, dtype=np.uint16), 2000)])
    repeated = DataSpec(
        train=(TokenSource(folder=str(tmp_path / "train"), n_tokens=2000),), validation=(), tokenizer=None, digest="d"
    )
    run = trained(tmp_path / "run", repeated, {"train.max_steps": 60, "optimizer.lr": 0.02})
    losses = [row["loss"] for row in run.rows("steps")]
    assert losses[0] > 4 and losses[-1] < 0.1


def test_a_full_finetune_changes_every_parameter(tmp_path: Path, data: DataSpec) -> None:
    config = ModelConfig.model_validate({**MODEL, "padded_vocab_size": 97})
    before = weights_of(random_model(config))
    save_hf(before, config, str(tmp_path / "base"))
    keys = {"model.padded_vocab_size": 97, "train.max_steps": 3}
    run = make_run(tmp_path / "run", data, keys)
    run_workers(run, 1, {"model.init_from": str(tmp_path / "base")})
    after = final_weights(run)
    assert {name for name in after if name.startswith("model.")} == {f"model.{name}" for name in before}
    same = [name for name, weight in before.items() if torch.equal(after[f"model.{name}"], weight)]
    assert same == []


def test_checkpoints_are_those_that_are_asked_for(run: RunDir, tmp_path: Path, data: DataSpec) -> None:
    assert committed_steps(run) == [3, 6, 9, 11]
    few = trained(tmp_path / "few", data, {**TOLD, "checkpoint.keep": 1})
    assert committed_steps(few)[-1] == 11 and set(committed_steps(few)) < {3, 6, 9, 11}
    last = trained(tmp_path / "last", data, {**TOLD, "checkpoint.every_steps": None})
    assert committed_steps(last) == [11]


def test_validations_are_those_that_are_asked_for(run: RunDir, tmp_path: Path, data: DataSpec) -> None:
    """Before the first step if it is asked for, every so many, and once at the end."""
    assert [row["step"] for row in run.rows("validation")] == [0, 4, 8, 11]
    changed = {**TOLD, "validation.at_start": False, "validation.every_steps": 11}
    assert [row["step"] for row in trained(tmp_path / "run", data, changed).rows("validation")] == [11]


def test_a_limit_of_validation_measures_the_first_batches(run: RunDir, tmp_path: Path, data: DataSpec) -> None:
    few = write_data(tmp_path / "data", n_validation_tokens=1 + 2 * 4 * 16)
    limited = trained(tmp_path / "limited", data, {**TOLD, "validation.max_batches": 2})
    short = trained(tmp_path / "short", few, TOLD)
    every, first, alone = ([row["loss"] for row in one.rows("validation")] for one in (run, limited, short))
    assert first == alone != every
    assert history(limited) == history(run)


def test_an_update_has_one_learning_rate_however_it_is_accumulated(run: RunDir, tmp_path: Path, data: DataSpec) -> None:
    accumulated = trained(tmp_path / "run", data, {**TOLD, "train.micro_batch_size": 1})
    recipe = Recipe.model_validate(apply_overrides(RECIPE, TOLD))
    expected = [
        (step + 1, lr_at(step, max_steps=11, optimizer=recipe.optimizer, schedule=recipe.schedule))
        for step in range(11)
    ]
    assert history(run, ("step", "lr")) == history(accumulated, ("step", "lr")) == expected
    assert len({lr for _, lr in expected}) > 5


def test_seeds_decide(run: RunDir, tmp_path: Path, data: DataSpec) -> None:
    """The same ones the same run; one of weights changes no token, and one of the order no weight."""
    assert history(trained(tmp_path / "same", data, TOLD)) == history(run)
    weights = trained(tmp_path / "weights", data, {**TOLD, "train.seed": 2})
    order = trained(tmp_path / "order", data, {**TOLD, "data.seed": 4})
    hashes, losses = ([history(one, (key,)) for one in (run, weights, order)] for key in ("data_hash", "loss"))
    assert hashes[1] == hashes[0] != hashes[2]
    assert losses[1] != losses[0] != losses[2]
    starts = [next(iter(one.rows("validation")))["loss"] for one in (run, weights, order)]
    assert starts[2] == starts[0] != starts[1]


def test_each_checkpoint_says_what_made_it(run: RunDir) -> None:
    for step in committed_steps(run):
        manifest = read_manifest(run.path(run.checkpoint_dir(step)))
        assert manifest.versions["torch"] == torch.__version__ and "python" in manifest.versions
        assert manifest.recipe_hash and manifest.data_digest == "d0"
        assert manifest.model["dim"] == MODEL["dim"]
        tables = {name for name in manifest.tensors if "embed" in name or "lm_head" in name}
        assert {name for name in tables if name.startswith("model.")} == {"model.embed.weight"}, "a tied table is once"
