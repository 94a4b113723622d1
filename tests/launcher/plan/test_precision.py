"""Precisions and ways to cut a model in a plan: what is refused, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest

from launchyard.errors import RecipeErrors
from launchyard.launcher.recipe.load import load_recipe
from tests.launcher.plan.test_planner import GPUS, H100, plan_of, problems_of


def test_fp8_says_all_that_it_lacks_before_anything_is_queued() -> None:
    ready = GPUS.model_copy(update={"has_torchao": True})
    assert plan_of(host=ready, train__precision="fp8").precision == "fp8"
    assert "trains on CPUs" in problems_of(train__precision="fp8")["train.precision"]
    assert "pip install torchao" in problems_of(host=GPUS, train__precision="fp8")["train.precision"]
    ampere = H100.model_copy(update={"name": "A100", "capability": (8, 0)})
    old = ready.model_copy(update={"gpus": (ampere,)})
    assert "A100 is not" in problems_of(host=old, train__precision="fp8")["train.precision"]
    assert "multiples of 16" in problems_of(host=ready, train__precision="fp8", model__ffn_dim=200)["train.precision"]
    assert "adapter" in problems_of(host=ready, train__precision="fp8", adapter__kind="lora")["train.precision"]


def test_a_quantized_base_is_not_shared_by_a_torch_that_cuts_no_bytes() -> None:
    adapted: dict[str, Any] = {"adapter__kind": "lora", "adapter__quantize": "nf4", "recipe": "pretrain/pythia-160m"}
    old = GPUS.model_copy(update={"old_torch": "2.11.0"})
    said = problems_of(host=old, **adapted)["adapter.quantize"]
    assert "torch 2.11.0" in said and "2.12" in said
    assert plan_of(host=old, **adapted, resources__nproc_per_node=1).world_size == 1
    assert plan_of(host=GPUS, **adapted).world_size == 8


def test_levels_of_sharding_and_offload_are_planned() -> None:
    eight: dict[str, Any] = {"recipe": "pretrain/pythia-160m", "host": GPUS}
    level3, level2, level0 = (plan_of(**eight, parallel__shard_level=level) for level in (3, 2, 0))
    assert (level0.mesh.dp_replicate, level0.mesh.dp_shard) == (8, 1)
    assert level0.memory["optimizer"] == 8 * level0.n_params > level2.memory["optimizer"]
    assert level3.memory["weights"] < level2.memory["weights"] < level0.memory["weights"]
    away = plan_of(**eight, parallel__cpu_offload=True)
    assert away.memory["optimizer"] == 0 and away.memory["total"] < level3.memory["total"]
    assert "whole copy" in problems_of(**eight, parallel__shard_level=0, parallel__dp_shard=4)["parallel.shard_level"]
    assert "trains on CPUs" in problems_of(parallel__cpu_offload=True)["parallel.cpu_offload"]
    every = "parallel.activation_checkpointing_every"
    assert "no block" in problems_of(parallel__activation_checkpointing_every=2)[every]


def test_shared_matrices_are_planned() -> None:
    eight: dict[str, Any] = {"recipe": "pretrain/pythia-160m", "host": GPUS}
    cut, shared = plan_of(**eight), plan_of(**eight, parallel__tp=4)
    assert (shared.mesh.dp_shard, shared.mesh.tp) == (2, 4)
    assert shared.batch.micro_batch_size * shared.batch.grad_accum_steps * 2 == shared.batch.global_batch_size
    assert shared.memory["optimizer"] < 2 * cut.memory["optimizer"] * 8 / 4, "tables are whole on all four"
    assert "as there are 8" in problems_of(**eight, parallel__tp=3)["parallel.tp"]
    assert "as there are 8" in problems_of(**eight, parallel__tp=2, parallel__cp=8)["parallel.cp"]
    stretches = plan_of(**eight, parallel__tp=2, parallel__cp=4)
    assert (stretches.mesh.dp_shard, stretches.mesh.cp) == (4, 4), "weights are cut over those with other tokens"
    whole = plan_of(**eight, parallel__tp=2, train__micro_batch_size=1).memory["activations"]
    short = plan_of(**eight, parallel__tp=2, parallel__cp=4, train__micro_batch_size=1).memory["activations"]
    assert short < 0.6 * whole
    assert "no multiple" in problems_of(**eight, parallel__cp=2, data__seq_len=2047)["parallel.cp"]
    assert "adapters" in problems_of(**eight, parallel__cp=2, adapter__kind="lora")["parallel.cp"]
    with pytest.raises(RecipeErrors, match="not pipelined"):
        plan_of(**eight, parallel__pp=2)
    assert "n_kv_heads" in problems_of(**eight, parallel__tp=8)["parallel.tp"]
    assert "adapters" in problems_of(**eight, parallel__tp=2, adapter__kind="lora")["parallel.tp"]


def test_a_rounding_is_of_weights_in_bf16() -> None:
    assert "is for" in problems_of(train__precision="bf16", train__bf16_rounding="nearest")["train.bf16_rounding"]
    kept = plan_of(train__precision="bf16-true", train__bf16_rounding="compensated")
    plain = plan_of(train__precision="bf16-true")
    assert kept.checkpoint_bytes - plain.checkpoint_bytes == 2 * plain.n_params
    assert plan_of().checkpoint_bytes - plain.checkpoint_bytes == 2 * plain.n_params


def test_an_optimizer_of_whole_matrices_takes_no_parts_of_them() -> None:
    recipe = load_recipe("pretrain/pythia-160m", {"parallel.tp": 2}).recipe
    other = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"name": "muon"})})
    assert plan_of(recipe, GPUS).mesh.tp == 2
    assert "muon is of whole matrices" in problems_of(other, GPUS)["parallel.tp"]
