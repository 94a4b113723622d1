"""Every architecture trains: its gradients on two sharded ranks that recompute activations are those of one process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.layout import is_norm
from launchyard.model.zoo import config_from_hf
from launchyard.training.build import build_model
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.distributed import connect, disconnect, read_world
from launchyard.training.parallel import clean_name, local, shard_extent
from launchyard.training.recipe import Recipe
from launchyard.training.spec import IGNORE_INDEX
from launchyard.training.step import forward_backward
from tests.support.architectures import ARCHITECTURES
from tests.support.ranks import run_ranks
from tests.support.tiny_models import llama, neox, random_tokens

BATCH, LENGTH = 4, 24  # past every window
CPU = torch.device("cpu")
# Those that transformers has no class for, or that this project had first.
OTHERS = {
    "gpt-neox": neox(),
    "gpt-neox-tied": neox(tie_embeddings=True, parallel_residual=False),
    "nope-gpt": llama(family="nope_gpt", n_kv_heads=4, positions="none", gated_mlp=False, tie_embeddings=True),
}
# Windows; sinks; latents, groups and a bias that is neither trained nor cut; chunks; a table of positions; none.
FEW = ("mistral", "gpt-oss", "deepseek-v3", "llama4", "gpt2", "nope-gpt")
IN_BF16 = ("mistral", "gpt-oss", "deepseek-v3")


def gradients(config: ModelConfig, world_size: int, rank: int, **options: Any) -> dict[str, tuple[Any, Tensor]]:
    """This rank's part of each parameter's gradient, with its place, after two micro batches."""
    precision = options.pop("precision", "fp32")
    recipe = Recipe.model_validate(
        {
            "name": "x", "model": config.model_dump(exclude_none=True), "data": {"source": "x"}, "parallel": options,
            "train": {"max_steps": 1, "global_batch_size": BATCH, "device": "cpu", "precision": precision,
                      "load_balancing_loss": 0.5},
        }
    )  # fmt: skip
    model = build_model(config, recipe, world_size=world_size, device=CPU, fill=False)
    fill(model)
    share = BATCH // world_size
    mine = slice(rank * share, (rank + 1) * share)
    tokens = random_tokens(config, BATCH, LENGTH + 1)
    inputs, labels = tokens[:, :-1], tokens[:, 1:].clone()
    labels[0, 11:] = IGNORE_INDEX
    pairs = zip(inputs[mine].split(share // 2), labels[mine].split(share // 2), strict=True)
    micro_batches = [MicroBatch(*pair) for pair in pairs]
    loss = forward_backward(model, micro_batches, n_parts=int((labels != IGNORE_INDEX).sum()))
    assert loss.isfinite()
    learned = [(clean_name(name), p) for name, p in model.named_parameters() if p.requires_grad]
    absent = [name for name, parameter in learned if parameter.grad is None]
    assert not absent, f"no gradient reaches {absent}"
    return {name: (shard_extent(p), local(p.grad)) for name, p in learned if p.grad is not None}


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Weights large enough that every part of the model shows in the gradients."""
    for raw_name, parameter in model.named_parameters():
        name = clean_name(raw_name)
        generator = torch.Generator().manual_seed(sum(name.encode()))
        whole = torch.randn(parameter.shape, generator=generator) * 0.15 + (1.0 if is_norm(name) else 0.0)
        offsets, sizes = shard_extent(parameter)
        local(parameter).copy_(whole[tuple(slice(at, at + n) for at, n in zip(offsets, sizes, strict=True))])


def config_of(name: str) -> ModelConfig:
    return OTHERS[name] if name in OTHERS else config_from_hf(ARCHITECTURES[name])


def _compare(folder: str, names: list[str]) -> None:
    world = read_world()
    connect(world, CPU)
    failures = [failure for name in names if (failure := _failure(folder, name, world.rank))]
    for name in sorted({*IN_BF16} & {*names}):
        parts = gradients(config_of(name), 2, world.rank, activation_checkpointing="full", precision="bf16")
        failures += [f"{name}, bf16: {key}" for key, (_, part) in parts.items() if not part.isfinite().all()]
    disconnect()
    assert not failures, "\n".join(failures)


def _failure(folder: str, name: str, rank: int) -> str | None:
    try:
        whole = torch.load(f"{folder}/{name}")
        parts = gradients(config_of(name), 2, rank, activation_checkpointing="full")
        assert parts.keys() == whole.keys(), parts.keys() ^ whole.keys()
        greatest = max(float(grad.abs().max()) for grad in whole.values())
        for key, ((offsets, sizes), part) in parts.items():
            expected = whole[key][tuple(slice(at, at + n) for at, n in zip(offsets, sizes, strict=True))]
            size = float(whole[key].abs().max())
            assert 0 < size < math.inf, f"{key}: the gradient is {size}"
            off = float((part - expected).abs().max()) if part.numel() else 0.0
            # The gradient of a key's bias is rounding alone where nothing rotates: it moves all scores of a query.
            assert off < 1e-5 * max(size, 1e-2 * greatest), f"{key}: off by {off / size:.1e} of its greatest"
    except Exception as error:  # the other architectures are to be heard of as well
        return f"{name}, rank {rank}: {type(error).__name__}: {error}"
    return None


ALL_OTHERS = pytest.param(sorted({*ARCHITECTURES, *OTHERS} - {*FEW}), marks=pytest.mark.families, id="others")


@pytest.mark.parametrize("names", [pytest.param(FEW, id="few"), ALL_OTHERS])
def test_two_sharded_ranks_have_the_gradients_of_one(tmp_path: Path, names: Sequence[str]) -> None:
    for name in names:
        whole = {key: grad for key, (_, grad) in gradients(config_of(name), 1, 0).items()}
        torch.save(whole, tmp_path / name)
    run_ranks(2, _compare, str(tmp_path), list(names))
