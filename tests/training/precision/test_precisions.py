"""Each precision: the types that weights, products and moments have, and a loss that is near that of fp64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.memory import training_memory
from launchyard.model.precision import NUMBER_BYTES, PRECISIONS, SPELLINGS, Precision
from launchyard.training.build import build_model
from launchyard.training.checkpoint.state import shards
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.distributed import connect, disconnect, read_world
from launchyard.training.objectives.next_token import NextToken
from launchyard.training.objectives.objective import Objective
from launchyard.training.parallel import torch_type
from launchyard.training.precision.loss_scale import ScaledObjective
from launchyard.training.precision.rounded import open_optimizer
from launchyard.training.recipe import Recipe
from launchyard.training.sections.train import TrainConfig
from launchyard.training.step import train_step
from tests.support.small_runs import MODEL

LLAMA = {
    "family": "llama", "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "vocab_size": 97,
    "max_seq_len": 64, "tie_embeddings": True,
}  # fmt: skip
EXPERTS = {**LLAMA, "moe": {"n_experts": 4, "top_k": 2, "ffn_dim": 24, "wide_router": True}}
# Of the loss of fp64, after a few steps. A number of bf16 has 8 bits, one of fp16 11.
NEAR = {"fp32": 1e-5, "bf16": 5e-3, "bf16-true": 2e-2, "fp16-mixed": 2e-3, "fp64": 0.0}


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    connect(read_world(), torch.device("cpu"))
    yield
    disconnect()


def recipe_of(model: dict[str, Any], precision: str, **train: object) -> Recipe:
    told = {"max_steps": 1, "global_batch_size": 4, "precision": precision, "device": "cpu", **train}
    return Recipe.model_validate({"name": "x", "model": model, "data": {"source": "x"}, "train": told})


def batch(step: int) -> MicroBatch:
    tokens = torch.randint(0, 97, (4, 17), generator=torch.Generator().manual_seed(step))
    return MicroBatch(tokens[:, :-1], tokens[:, 1:])


def built(recipe: Recipe) -> nn.Module:
    config = ModelConfig.model_validate(recipe.model.model_dump(exclude_none=True))
    return build_model(config, recipe, world_size=1, device=torch.device("cpu"))


def losses(recipe: Recipe, n: int = 5) -> tuple[list[float], dict[str, Tensor]]:
    model = built(recipe)
    optimizer = open_optimizer(model, recipe)
    objective: Objective = NextToken()
    if PRECISIONS[recipe.train.precision].scales_loss:
        objective = ScaledObjective(objective, 1024.0)
    found = []
    for number in range(1, n + 1):
        means, _ = train_step(
            model, optimizer, [batch(number)], n_parts=64, number=number, lr=1e-3, max_grad_norm=1.0,
            objective=objective,
        )  # fmt: skip
        found.append(float(means[0]))
    return found, {key: shard.tensor for key, shard in shards(model, optimizer).items()}


@pytest.mark.parametrize("precision", NEAR)
@pytest.mark.parametrize("shape", [pytest.param("neox", marks=pytest.mark.slow), "llama", "experts"])
def test_the_loss_is_near_that_of_fp64(shape: str, precision: Precision) -> None:
    model = {"neox": MODEL, "llama": LLAMA, "experts": EXPERTS}[shape]
    exact, _ = losses(recipe_of(model, "fp64"))
    assert exact[-1] != exact[0]
    assert losses(recipe_of(model, precision))[0] == pytest.approx(exact, rel=NEAR[precision], abs=0)


def test_products_in_8_bits_are_near_too() -> None:
    """On a CPU as well, where a plan refuses them: nothing is gained there."""
    pytest.importorskip("torchao")
    model = built(recipe_of(LLAMA, "fp8"))
    assert {type(block.mlp.up_proj).__name__ for block in model.blocks} == {"Float8Linear"}
    (found, saved), (exact, same) = losses(recipe_of(LLAMA, "fp8")), losses(recipe_of(LLAMA, "fp32"))
    assert found == pytest.approx(exact, rel=2e-2) and found != exact and saved.keys() == same.keys()
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.parametrize("precision", NEAR)
def test_types_are_those_of_the_table(precision: Precision) -> None:
    types = PRECISIONS[precision]
    recipe = recipe_of(LLAMA, precision)
    model = built(recipe)
    seen: set[torch.dtype] = set()
    for block in model.blocks:
        block.mlp.register_forward_pre_hook(lambda mlp, args: seen.update({args[0].dtype, mlp.up_proj.weight.dtype}))
    model(batch(0).inputs)
    assert seen == {torch_type(types.computed)}
    _, saved = losses(recipe, n=1)
    for key, tensor in saved.items():
        assert tensor.dtype == torch_type(types.stored if key.startswith("model.") else types.kept), key


@pytest.mark.parametrize("precision", NEAR)
def test_the_plan_counts_the_bytes_of_these_types(precision: Precision) -> None:
    recipe = recipe_of(LLAMA, precision)
    config = ModelConfig.model_validate(LLAMA)
    _, saved = losses(recipe, n=1)
    n_trained = sum(tensor.numel() for key, tensor in saved.items() if key.startswith("model."))
    foreseen = training_memory(
        config, micro_batch_size=4, seq_len=16, shards=1, precision=precision, device="cpu"
    )  # fmt: skip
    assert foreseen["optimizer"] == sum(tensor.nbytes for key, tensor in saved.items() if "exp_avg" in key)
    assert foreseen["gradients"] == NUMBER_BYTES[PRECISIONS[precision].stored] * n_trained


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_names_of_other_tools_are_understood(spelled: str) -> None:
    assert TrainConfig.model_validate({"max_steps": 1, "precision": spelled}).precision == SPELLINGS[spelled]
    if spelled.isdigit():  # as YAML has it
        assert TrainConfig.model_validate({"max_steps": 1, "precision": int(spelled)}).precision == SPELLINGS[spelled]


def test_one_that_is_left_out_is_said_why() -> None:
    with pytest.raises(ValueError, match=r"16-true: weights in fp16 lose .* use bf16-true"):
        TrainConfig.model_validate({"max_steps": 1, "precision": "16-true"})


@pytest.mark.parametrize("precision", ["bf16-true", "fp16-mixed", "fp64"])
@pytest.mark.parametrize("kind", ["lora", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("qlora", "dora"))])
def test_adapters_train_in_each(kind: str, precision: Precision) -> None:
    config = ModelConfig.model_validate(LLAMA)
    adapter = Adapter.model_validate({"kind": kind, "r": 4, "dropout": 0.1})
    found = []
    for name in ("fp32", precision):
        recipe = recipe_of(LLAMA, name)
        model = build_model(config, recipe, world_size=1, device=torch.device("cpu"), adapter=adapter)
        optimizer = open_optimizer(model, recipe)
        objective: Objective = NextToken() if name != "fp16-mixed" else ScaledObjective(NextToken(), 1024.0)
        for number in (1, 2, 3):
            means, norm = train_step(
                model, optimizer, [batch(number)], n_parts=64, number=number, lr=1e-2, max_grad_norm=1.0,
                objective=objective,
            )  # fmt: skip
        found.append((float(means[0]), float(norm)))
        types = {p.dtype for p in model.parameters() if p.requires_grad}
        assert types == {torch_type(PRECISIONS[recipe.train.precision].stored)}
    assert found[1] == (pytest.approx(found[0][0], rel=2e-2), pytest.approx(found[0][1], rel=0.1))


def test_gradients_of_bf16_weights_are_summed_in_fp32_over_micro_batches() -> None:
    """Else the thousandth micro batch would add nothing."""
    recipe = recipe_of(LLAMA, "bf16-true")
    summed: list[Tensor] = []
    for n in (1, 64):
        model = built(recipe)
        model.train()
        for number in range(n):
            model.set_requires_gradient_sync(number == n - 1)
            one = batch(0)
            NextToken()(model, one, 1.0 / n)[0].backward()
        summed.append(model.embed.weight.grad.to_local().float())
    assert (summed[0] - summed[1]).norm() / summed[0].norm() < 6e-3
