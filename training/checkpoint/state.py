"""Everything that must survive a preemption, and nothing else: weights, moments, and a few numbers.

There is no scheduler, no data position and no random state to save: all three are functions of the step.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from launchyard.model.precision import PRECISIONS, Precision
from launchyard.storage.damage import JsonObject
from launchyard.training.optim.base import Optimizer
from launchyard.training.parallel import clean_name, local, owns_part, place_in_model, place_in_world, replica
from launchyard.training.precision.loss_scale import FIRST_SCALE
from launchyard.training.verdict import Best, Patience


@dataclass
class TrainState:
    """Counters of a run. `step` counts finished optimizer steps; `validated_step` is where the loss was measured.

    loss_scale: in fp16, with its steps without an overflow since it changed. skipped_steps: finished steps that left
    the weights as they were.
    `left_out`: steps, counted from 1, whose update is left out, done or to come; `interventions`: what the guard of
    training/stability/ has done so far; `usual_loss`: its numbers.
    `seconds_trained`: by rank 0's clock, over all attempts; counted where train.max_time bounds it.
    """

    step: int = 0
    tokens_seen: int = 0
    validation_loss: float | None = None
    validated_step: int | None = None
    best: Best = field(default_factory=list)  # of the checkpoints that are kept for it
    patience: Patience = field(default_factory=Patience)
    loss_scale: float | None = None
    loss_scale_steps: int = 0
    skipped_steps: int = 0
    left_out: list[int] = field(default_factory=list)
    interventions: int = 0
    usual_loss: list[float] = field(default_factory=list)
    seconds_trained: float = 0.0
    ended_by: str | None = None  # the `code` whose StopTraining has ended the run

    def to_json(self) -> JsonObject:
        found = asdict(self)
        if self.ended_by is None:  # as that of runs without code of their own
            found.pop("ended_by")
        return found

    def become(self, other: TrainState) -> None:
        for own in fields(self):
            setattr(self, own.name, getattr(other, own.name))

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> TrainState:
        counters = {**raw, **raw.get("extra", {})}  # the first manifests have validated_step in `extra`
        known = {one.name: counters[one.name] for one in fields(cls) if one.name in counters}
        known["best"] = [(int(step), float(figure)) for step, figure in known.get("best", ())]
        known["patience"] = Patience(**known.get("patience", {}))
        return cls(**known)


def first_state(precision: Precision) -> TrainState:
    """Before any step."""
    return TrainState(loss_scale=FIRST_SCALE if PRECISIONS[precision].scales_loss else None)


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
        found[f"model.{name}"] = _cut(model, f"model.{name}", name, tensor, weights)
        for key, entry in optimizer.state(parameter).items() if optimizer else ():
            full_key = f"optimizer.{name}.{key}"
            if entry.is_whole:
                found[full_key] = _whole(full_key, entry.tensor)
            else:
                found[full_key] = _cut(model, full_key, name, tensor, entry.tensor)
    return found


def _cut(model: nn.Module, key: str, name: str, parameter: Tensor, part: Tensor) -> Shard:
    """A part of the shape of the parameter's is cut as that is, whichever ways; of another its first axis alone, as the
    parameter's, and its other axes are its own, and whole."""
    mine, copies = replica(parameter)
    writes = owns_part(model, name) and _falls_to(key, copies) == mine
    shape, offsets = place_in_model(model, name, parameter)
    if part.shape != local(parameter).shape:
        shape = (shape[0], *part.shape[1:])
        offsets = (offsets[0], *(0 for _ in part.shape[1:]))
    return Shard(shape, offsets, part, writes)


def _whole(key: str, tensor: Tensor) -> Shard:
    """A tensor that every rank has in full."""
    mine, copies = place_in_world()
    return Shard(tuple(tensor.shape), (0,) * tensor.ndim, tensor, writes=_falls_to(key, copies) == mine)


def _falls_to(key: str, copies: int) -> int:
    """The one that writes, among ranks that hold the same."""
    return zlib.crc32(key.encode()) % copies
