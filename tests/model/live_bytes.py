"""Bytes of the storages that are alive while a piece of code runs, and the most there were."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class LiveBytes(TorchDispatchMode):
    """Counts every storage that an operation returns until nothing refers to it; sees no scratch inside a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, n_bytes: int) -> None:
        self._known.discard(key)
        self.now -= n_bytes

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        self.peak = max(self.peak, self.now)
        return out


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
