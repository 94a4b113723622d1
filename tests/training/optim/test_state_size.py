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
