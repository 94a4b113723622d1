"""The bytes that a plan foresees for each optimizer are those that its state takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameters
from launchyard.training.build import build_model
from launchyard.training.checkpoint.state import shards
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.optim.state_size import state_size
from launchyard.training.recipe import Recipe
from launchyard.training.sections.optimizer import OptimizerConfig
from launchyard.training.trial.live_bytes import LiveBytes
from tests.training.optim.toy import FULL, config_of

MODEL: dict[str, Any] = {
    "family": "llama", "dim": 40, "n_layers": 2, "n_heads": 4, "ffn_dim": 300, "vocab_size": 97, "max_seq_len": 64,
    "moe": {"n_experts": 4, "top_k": 2, "ffn_dim": 24, "dense_layers": (0,)},
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_foreseen_is_what_is_there(name: str) -> None:
    config = ModelConfig.model_validate(MODEL)
    given = {"name": "n", "model": MODEL, "data": {"source": "x"}, "train": {"max_steps": 1, "device": "cpu"}}
    model = build_model(config, Recipe.model_validate(given), world_size=1, device=torch.device("cpu"))
    optimizer = make_optimizer(model, config_of(name))
    foreseen = state_size(config_of(name), parameters(config), shards=1)
    parts = shards(model, optimizer)
    assert sum(shard.tensor.nbytes for key, shard in parts.items() if key.startswith("optimizer.")) == foreseen.saved
    tensors = [entry.tensor for p in model.parameters() for entry in optimizer.state(p).values()]
    tensors += [optimizer.weights(p) for p in model.parameters()]
    held = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    for p in model.parameters():
        held.pop(p.data_ptr(), None)
    assert sum(held.values()) == foreseen.held


def adafactor_step(*, low_memory: bool) -> tuple[int, torch.Tensor]:
    """(Most bytes alive in a step of many matrices besides themselves, what it made of one)."""
    torch.manual_seed(0)
    model = torch.nn.ModuleList(torch.nn.Linear(64, 64, bias=False) for _ in range(40))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = make_optimizer(model, OptimizerConfig(name="adafactor", low_memory=low_memory))
    with LiveBytes() as live:
        optimizer.step(1, 0.01)
    return live.peak - sum(p.nbytes for p in model.parameters()), next(model.parameters()).detach()


def test_low_memory_takes_less_at_once_for_the_same_weights() -> None:
    (lean, one), (wide, other) = (adafactor_step(low_memory=low) for low in (True, False))
    assert 5 * lean < wide
    torch.testing.assert_close(one, other)


def test_adafactor_keeps_a_row_and_a_column_where_adamw_keeps_two_matrices() -> None:
    config = ModelConfig.model_validate({**MODEL, "dim": 256, "moe": None, "ffn_dim": 1024})
    lean, full = (
        state_size(OptimizerConfig(name=name), parameters(config), shards=1) for name in ("adafactor", "adamw")
    )
    assert lean.saved < full.saved / 50
