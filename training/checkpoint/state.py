"""Everything that must survive a preemption, and nothing else: weights, moments, and a few numbers.

There is no scheduler, no data position and no random state to save: all three are functions of the step.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor, nn

from launchyard.training.optim.base import Optimizer
from launchyard.training.parallel import clean_name, local, place_in_world, replica, shard_extent


@dataclass
class TrainState:
    """Counters of a run. `step` counts finished optimizer steps; `validated_step` is where the loss was measured."""

    step: int = 0
    tokens_seen: int = 0
    validation_loss: float | None = None
    validated_step: int | None = None

    def to_json(self) -> dict[str, int | float | None]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> TrainState:
        counters = {**raw, **raw.get("extra", {})}  # the first manifests have validated_step in `extra`
        return cls(**{field.name: counters[field.name] for field in fields(cls) if field.name in counters})


@dataclass(frozen=True)
class Shard:
    """This rank's part of one tensor. `writes` is true on exactly one of the ranks that hold the same part."""

    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    tensor: Tensor
    writes: bool


def shards(model: nn.Module, optimizer: Optimizer | None) -> dict[str, Shard]:
    """Key -> this rank's part: `model.<name>`, `optimizer.<name>.<key>`. The tensors are views of the live ones.

    Only of parameters that train; the others follow from the start of the run.
    """
    found: dict[str, Shard] = {}
    for raw_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = clean_name(raw_name)
        tensor = parameter.detach()
        weights = optimizer.weights(parameter) if optimizer else local(tensor)
        found[f"model.{name}"] = _cut(f"model.{name}", tensor, weights)
        for key, entry in optimizer.state(parameter).items() if optimizer else ():
            full_key = f"optimizer.{name}.{key}"
            make = _whole if entry.is_whole else _cut
            found[full_key] = make(full_key, tensor, entry.tensor)
    return found


def _cut(key: str, parameter: Tensor, part: Tensor) -> Shard:
    """A part whose first axis is cut as the parameter's is; its other axes are its own, and whole."""
    mine, copies = replica(parameter)
    if not parameter.ndim:
        return Shard((), (), part, writes=_falls_to(key, copies) == mine)
    first = shard_extent(parameter)[0][0]
    offsets = (first, *(0 for _ in part.shape[1:]))
    return Shard((parameter.shape[0], *part.shape[1:]), offsets, part, writes=_falls_to(key, copies) == mine)


def _whole(key: str, _: Tensor, tensor: Tensor) -> Shard:
    """A tensor that every rank of a shard group has, and every copy of that."""
    mine, copies = place_in_world()
    return Shard(tuple(tensor.shape), (0,) * tensor.ndim, tensor, writes=_falls_to(key, copies) == mine)


def _falls_to(key: str, copies: int) -> int:
    """The one that writes, among ranks that hold the same."""
    return zlib.crc32(key.encode()) % copies
