"""Weights in bf16 under any optimizer: it updates an fp32 copy of one parameter at a time, which is then rounded.

Chance is a pure function of (seed, step, parameter, place in the whole tensor): the same after any resume and for any
number of workers. Knows no algorithm.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from launchyard.training.optim.base import Optimizer, StateTensor
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.parallel import clean_name, local, place_in_model
from launchyard.training.recipe import Recipe

_Place = tuple[tuple[int, ...], tuple[int, ...]]  # see place_in_model
Rounding = Literal["stochastic", "compensated", "nearest"]
COMPENSATION = "compensation"  # the name of its state
_SLICE = 1 << 22  # elements that are rounded at once: each takes some int64 on the way
_LOW = 0xFFFFFFFF


def open_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimizer, and how it rounds weights that are bf16."""
    if recipe.train.precision != "bf16-true":
        return make_optimizer(model, recipe.optimizer)
    rounding = recipe.train.bf16_rounding or "stochastic"
    make = partial(make_optimizer, config=recipe.optimizer)
    return RoundedOptimizer(model, make, rounding=rounding, seed=recipe.train.seed)


class _Alone(nn.Module):
    """One parameter under its name in the whole model, which is how optimizers tell what it is."""

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        super().__init__()
        self._only = (name, parameter)

    def named_parameters(self, *args: object, **kwargs: object) -> Iterator[tuple[str, nn.Parameter]]:
        yield self._only


@dataclass(frozen=True)
class _Updated:
    """A parameter, its fp32 copy, whose memory is there in an update alone, and the optimizer of that copy."""

    name: str
    parameter: nn.Parameter
    wide: nn.Parameter
    optimizer: Optimizer
    place: _Place
    rest: Tensor | None  # compensated: what rounding has left, int16

    def state(self) -> Mapping[str, StateTensor]:
        own = self.optimizer.state(self.wide)
        return own if self.rest is None else {**own, COMPENSATION: StateTensor(self.rest)}


class RoundedOptimizer:
    """The interface of training/optim/base.py. make: of a model, its optimizer; called for each parameter alone, and of
    those whose weights are the parameters."""

    def __init__(
        self, model: nn.Module, make: Callable[[nn.Module], Optimizer], *, rounding: Rounding, seed: int
    ) -> None:
        self._rounding = rounding
        self._seed = seed
        self._updated: dict[nn.Parameter, _Updated] = {}
        for raw_name, parameter in model.named_parameters():
            if parameter.requires_grad:
                name = clean_name(raw_name)
                place = place_in_model(model, name, parameter)
                self._updated[parameter] = self._prepared(name, parameter, place, make)
        if not self._updated:
            raise ValueError("no parameter trains: every one is frozen; leave some that are not")

    def _prepared(
        self, name: str, parameter: nn.Parameter, place: _Place, make: Callable[[nn.Module], Optimizer]
    ) -> _Updated:
        part = local(parameter.detach())
        memory = torch.empty_like(part, dtype=torch.float32)
        wide = nn.Parameter(_cut_like(parameter, memory))
        optimizer = make(_Alone(name, wide))
        memory.untyped_storage().resize_(0)
        rest = torch.zeros_like(part, dtype=torch.int16) if self._rounding == "compensated" else None
        return _Updated(name, parameter, wide, optimizer, place, rest)

    def begin(self, *, resumed: bool) -> None:
        for each in self._updated.values():
            each.optimizer.begin(resumed=resumed)

    def weights(self, parameter: nn.Parameter) -> Tensor:
        return local(parameter.detach())

    def evaluating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def state(self, parameter: nn.Parameter) -> Mapping[str, StateTensor]:
        found = self._updated.get(parameter)
        return {} if found is None else found.state()

    def zero_grad(self) -> None:
        for parameter in self._updated:
            parameter.grad = None

    @torch.no_grad()
    def step(self, number: int, lr: float) -> None:
        for each in self._updated.values():
            if each.parameter.grad is not None:
                self._update(each, number, lr)

    def _update(self, each: _Updated, number: int, lr: float) -> None:
        part = local(each.parameter.detach())
        wide = local(each.wide.detach())
        wide.untyped_storage().resize_(4 * part.numel())
        wide.copy_(part)
        if each.rest is not None:
            wide.view(torch.int32).add_(each.rest)
        each.wide.grad = _cut_like(each.parameter, local(each.parameter.grad).float())
        each.optimizer.step(number, lr)
        each.wide.grad = None
        if self._rounding == "stochastic":
            round_by_chance(part, wide, each.place, key=f"{self._seed}/{number}/{each.name}")
        elif each.rest is None:
            part.copy_(wide)
        else:
            _split(wide, part, each.rest)
        wide.untyped_storage().resize_(0)


def _cut_like(parameter: Tensor, part: Tensor) -> Tensor:
    """A tensor of which `part` is this rank's, cut as the parameter is."""
    if not hasattr(parameter, "device_mesh"):
        return part
    from torch.distributed.tensor import DTensor

    like: Any = parameter
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def round_by_chance(out: Tensor, wide: Tensor, place: _Place, *, key: str) -> None:
    """Round fp32 to bf16, up with the probability of the part that is cut off, so right on average.

    out (bf16) and wide: this rank's part. place: (shape of the whole, offsets in it); chance differs by key and place.
    """
    whole, offsets = place
    rows = max(1, _SLICE // max(1, math.prod(wide.shape[1:])))
    for start in range(0, wide.shape[0] if wide.ndim else 1, rows):
        piece = wide[start : start + rows] if wide.ndim else wide
        corner = (offsets[0] + start, *offsets[1:]) if wide.ndim else ()
        chance = _chance(_places(piece, corner, whole), key)
        bits = (piece.view(torch.int32) + chance) & -0x10000  # a carry is a step up, in both signs
        (out[start : start + rows] if wide.ndim else out).copy_(bits.view(torch.float32))


def _split(wide: Tensor, high: Tensor, low: Tensor) -> None:
    """The bits of fp32 as the nearest bf16 (of two, the one farther from 0) and the distance to it in last places.

    Nothing is lost: `low` added to the bits of `high` gives those of `wide`.
    """
    bits = wide.view(torch.int32)
    nearest = (bits + 0x8000) & -0x10000
    high.copy_(nearest.view(torch.float32))
    low.copy_(bits.sub_(nearest))


def _places(piece: Tensor, corner: tuple[int, ...], whole: tuple[int, ...]) -> Tensor:
    """int64: the place of each element among those of the whole tensor."""
    found = torch.zeros((), dtype=torch.int64, device=piece.device)
    for size, first, length in zip(piece.shape, corner, whole, strict=True):
        found = found[..., None] * length + torch.arange(first, first + size, device=piece.device)
    return found


def _chance(places: Tensor, key: str) -> Tensor:
    """int32 in [0, 65536): 16 bits of a hash of key and place."""
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    mixed = _mixed((places & _LOW) ^ (number & _LOW))
    mixed = _mixed(mixed ^ (places >> 32) ^ (number >> 32))
    return (mixed & 0xFFFF).to(torch.int32)


def _mixed(x: Tensor) -> Tensor:
    """Each bit of 32 turned over by every other in half of all cases (hash-prospector, lowbias32)."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _LOW
    return x ^ (x >> 16)
