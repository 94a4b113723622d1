"""Each bundled recipe trains: its twin of tiny sizes, with every other key as it stands, planned and then run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from launchyard.launcher.plan.plan import PlannedData
from launchyard.launcher.recipe.bundled import bundled_recipes
from launchyard.launcher.recipe.load import LoadedRecipe, load_recipe
from launchyard.model.config import ModelConfig
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.zoo import make_config, preset
from launchyard.run.rundir import RunDir
from launchyard.training.spec import DataSpec
from tests.launcher.plan.test_bundled import SHAPES
from tests.launcher.plan.test_planner import CPU, plan_of
from tests.support.small_runs import pair, row, run_workers, write_data, write_groups
from tests.support.tiny_models import random_model, weights_of

N_STEPS = 3
# Of 40 elements a head, every share that rotates is a whole number of pairs.
TINY = {"dim": 80, "n_layers": 2, "n_heads": 2, "ffn_dim": 96, "vocab_size": 97, "padded_vocab_size": 128}
SHORT: dict[str, Any] = {
    "data.seq_len": 16, "train.max_tokens": None, "train.max_epochs": None, "train.max_steps": N_STEPS,
    "train.global_batch_size": 4, "train.micro_batch_size": 2, "train.device": "cpu", "metrics.prometheus": False,
}  # fmt: skip
# What `make test` trains; one of each kind.
SAMPLE = {"pretrain/nope-gpt-xl", "pretrain/tiny-llama-1.1b", "finetune/phi-2/lora", "finetune/dpo", "finetune/adapter"}


def tiny(name: str) -> dict[str, Any]:
    """Knobs over a preset; fewer key heads than heads where it has fewer."""
    shape = preset(name)
    return {**TINY, "n_kv_heads": 2 if shape.n_kv_heads == shape.n_heads else 1, "head_dim": 40}


def written(kind: str, folder: Path) -> DataSpec:
    if kind == "tokens":
        return write_data(folder)
    make, together = (pair, 2) if kind == "preference" else (row, 1)
    return write_groups(str(folder), map(make, range(60)), seq_len=32, epochs=3, together=together)


def twin_of(name: str, folder: Path) -> tuple[LoadedRecipe, ModelConfig | None, DataSpec]:
    """The recipe with tiny sizes, the shape of the weights it starts from, and its data."""
    original = load_recipe(name).recipe
    data = written(original.data.kind, folder / "data")
    keys: dict[str, Any] = {**SHORT, "data.seq_len": 16 if original.data.kind == "tokens" else 32}
    if original.checkpoint.every_steps is not None:
        keys["checkpoint.every_steps"] = 2
    if original.validation.every_steps is not None:
        keys["validation.every_steps"] = 2
    if original.validation.sample is not None:
        keys["validation.sample"] = None  # it needs a tokenizer, and these tokens have none
    if original.schedule.warmup_steps >= 1:
        keys["schedule.warmup_steps"] = 1
    if original.model.init_from is None:
        knobs = tiny(original.model.preset) if original.model.preset else TINY
        return load_recipe(name, {**keys, **{f"model.{key}": value for key, value in knobs.items()}}), None, data
    shape = SHAPES[original.model.init_from]
    config = make_config(preset=shape, fields=tiny(shape), hf=None)
    save_hf(weights_of(random_model(config, std=0.05)), config, str(folder / "weights"))
    return load_recipe(name, {**keys, "model.init_from": str(folder / "weights")}), config, data


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SAMPLE else [pytest.mark.slow]) for name in bundled_recipes()]
)
def test_its_twin_trains_three_steps(name: str, tmp_path: Path) -> None:
    loaded, init, data = twin_of(name, tmp_path)
    plan = plan_of(
        loaded.recipe, host=CPU, data=PlannedData(spec=data, vocab_size=97), init=init, run_url=str(tmp_path / "run")
    )
    run = RunDir(plan.run_url)
    run.write_text("recipe.yaml", yaml.safe_dump(loaded.raw))
    run.write_json("plan.json", plan.model_dump(mode="json"))
    run_workers(run, 1)
    rows = list(run.rows("steps"))
    assert [one["step"] for one in rows] == list(range(1, N_STEPS + 1))
    assert all(one["loss"] > 0 and one["grad_norm"] > 0 for one in rows)
