"""Weights in memory, and architectures that two ranks can share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.network.transformer import Transformer
from launchyard.model.zoo import config_from_hf
from tests.support.architectures import ARCHITECTURES
from tests.support.tiny_models import weights_of


class Held:
    """The weights of a model in memory; notes what was read of them."""

    def __init__(self, model: Transformer) -> None:
        self.config = model.config
        self.n_read = 0
        self._tensors = weights_of(model)

    def keys(self) -> list[str]:
        return list(self._tensors)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].dtype

    def get(self, key: str) -> Tensor:
        return self._tensors[key]

    def rows(self, wanted: Mapping[str, range]) -> Iterator[tuple[str, Tensor]]:
        for key, rows in wanted.items():
            found = self._tensors[key][rows.start : rows.stop]
            self.n_read += found.numel()
            yield key, found


def architecture(name: str) -> ModelConfig:
    """Wide enough to be shared by two: with a second key head, and experts of twice eight."""
    config = config_from_hf(ARCHITECTURES[name])
    moe = config.moe
    changed: dict[str, object] = {"n_kv_heads": max(2, config.n_kv_heads)}
    if moe is not None:
        changed["moe"] = moe.model_copy(update={"ffn_dim": -(-moe.ffn_dim // 16) * 16})
    return config.model_copy(update=changed)
