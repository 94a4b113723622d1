"""Bytes of the storages that are alive while a piece of code runs, and the most there were."""

from __future__ import annotations

import torch
from torch import nn

from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.memory import Savings
from launchyard.model.network.transformer import Transformer
from launchyard.training.build import build_model
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.parallel import checkpoint_activations
from launchyard.training.recipe import Recipe
from launchyard.training.sections.optimizer import OptimizerConfig
from launchyard.training.step import train_step
from launchyard.training.trial.live_bytes import LiveBytes


def trained_peak(
    config: ModelConfig,
    *,
    micro_batch_size: int,
    seq_len: int,
    savings: Savings | None = None,
    n_micro_batches: int = 1,
    adapter: Adapter | None = None,
) -> int:
    """The most bytes of live storages in two fp32 steps of training on the CPU, weights and AdamW's state included."""
    with LiveBytes() as live:
        model = Transformer(config) if adapter is None else _adapted(config, adapter)
        _fill(model)
        live.peak = live.now
        if savings is not None and savings.activation_checkpointing != "none":
            checkpoint_activations(model.blocks, savings.activation_checkpointing, savings.every)
        optimizer = make_optimizer(model, OptimizerConfig())
        for number in (1, 2):
            size = (2, micro_batch_size, seq_len)
            pairs = [torch.randint(config.vocab_size, size).unbind() for _ in range(n_micro_batches)]
            n_valid = micro_batch_size * seq_len * n_micro_batches
            batches = [MicroBatch(inputs, labels) for inputs, labels in pairs]
            train_step(model, optimizer, batches, n_parts=n_valid, number=number, lr=1e-3, max_grad_norm=1.0)
    return live.peak


@torch.no_grad()
def _fill(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.normal_(std=0.02)
        else:
            parameter.fill_(1)


def _adapted(config: ModelConfig, adapter: Adapter) -> nn.Module:
    recipe = Recipe.model_validate({
        "name": "peak", "data": {"source": "x"}, "model": config.model_dump(exclude_none=True),
        "train": {"max_steps": 1, "global_batch_size": 1, "precision": "fp32", "device": "cpu"},
    })  # fmt: skip
    return build_model(config, recipe, world_size=1, device=torch.device("cpu"), fill=False, adapter=adapter)
