"""A transformer layer by layer over several devices of one process. Knows no files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameter_shapes
from launchyard.model.network.documents import Documents
from launchyard.model.network.kv_cache import Cache
from launchyard.model.network.transformer import Places, Transformer

_Args = tuple[Tensor, *tuple[object, ...]]


def device_numbers(config: ModelConfig, n_devices: int) -> dict[str, int]:
    """The number of its device for each part: what is before the blocks, each block, what is behind them.

    Contiguous runs, as even as whole blocks allow. A head that is the table is where the table is.
    """
    sizes: dict[str, int] = {}
    for key, shape in parameter_shapes(config).items():
        sizes[place_of(key)] = sizes.get(place_of(key), 0) + math.prod(shape)
    numbers: dict[str, int] = {}
    before = 0
    for part, size in sizes.items():
        numbers[part] = (2 * before + size) * n_devices // (2 * sum(sizes.values()))  # of its middle
        before += size
    numbers["before"] = 0
    numbers["behind"] = 0 if config.tie_embeddings else numbers.get("behind", n_devices - 1)
    return numbers


def place_of(key: str) -> str:
    """`before`, `blocks.N` or `behind`, of a parameter."""
    first, *rest = key.split(".")
    if first == "blocks":
        return f"blocks.{rest[0]}"
    return "behind" if first in ("norm", "head_proj", "lm_head") else "before"


class SpreadTransformer(Transformer):
    """What blocks are told is brought to them; logits are where the head is."""

    def __init__(self, config: ModelConfig, devices: Sequence[torch.device]) -> None:
        super().__init__(config)
        numbers = device_numbers(config, len(devices))
        self.homes = {part: devices[number] for part, number in numbers.items()}
        self._of_layers = [self.homes[f"blocks.{layer}"] for layer in range(config.n_layers)]
        for block, home in zip(self.blocks, self._of_layers, strict=True):
            block.register_forward_pre_hook(lambda _, args, home=home: _brought(args, home))
        self.blocks[-1].register_forward_hook(lambda _module, _args, out: out.to(self.homes["behind"]))

    def places(
        self,
        n_new: int,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        documents: Documents | None = None,
    ) -> list[Places]:
        """Each kind of layer's are brought to a device once."""
        found = super().places(n_new, positions, cache, documents)
        made: dict[tuple[int, torch.device], Places] = {}
        for told, home in zip(found, self._of_layers, strict=True):
            if (id(told), home) not in made:
                made[id(told), home] = _moved(told, home)
        return [made[id(told), home] for told, home in zip(found, self._of_layers, strict=True)]


def _brought(args: _Args, home: torch.device) -> _Args:
    x, *told = args
    return (x.to(home), *told)


def _moved(told: Places, home: torch.device) -> Places:
    turn = None if told.turn is None else (told.turn[0].to(home), told.turn[1].to(home))
    mask = None if told.mask is None else told.mask.to(home)
    return Places(turn, mask, None if told.far is None else told.far.to(home))
