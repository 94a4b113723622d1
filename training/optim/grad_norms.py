"""Norms of the gradient by part of a model, and by rule of the recipe, measured now and then and before clipping.

They are made beside the global norm, which stays to the bit what it is without them. Knows no loop and no rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn

from launchyard.model.network.transfers import ReadBack, device_of_fp64, sent
from launchyard.training.distributed import sum_over_ranks
from launchyard.training.optim.groups import rule_of
from launchyard.training.parallel import clean_name, local, owned_parameters
from launchyard.training.sections.optimizer import GroupRule

REST = "rest"  # what no rule matches
Norms = dict[str, float]
Observer = Callable[[Callable[[], AbstractContextManager[None]]], None]


def block_or_module(name: str) -> str:
    """The part of a model that a parameter is in: `blocks.0`, `blocks.1` …, and else the module, as `embed`."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first == "blocks" else first


class GradNorms:
    """Each names all trained parameters once, so the root of the sum of squares of either is the global norm.

    copies: how many ranks hold the same part of each gradient (dp_replicate).
    """

    def __init__(self, model: nn.Module, rules: Sequence[GroupRule], *, every: int, copies: int) -> None:
        self._model = model
        self._rules = tuple(rules)
        self._every = every
        self._copies = copies
        names = [clean_name(name) for name, p in model.named_parameters() if p.requires_grad]
        self._parts = list(dict.fromkeys(map(block_or_module, names)))
        in_use = {self._rule(name) for name in names}
        self._groups = [rule for rule in (*(one.match for one in rules), REST) if rule in in_use] if rules else []
        self._norms: dict[int, ReadBack] = {}  # by step
        self._at: dict[tuple[int, ...], Tensor] = {}  # places that were sent to the device

    def observer(self, number: int) -> Observer | None:
        """Called with the gradients of step 1, 2, 3 … of all ranks; None of a step that is not measured."""
        return None if number % self._every else partial(self._measure, number)

    def take(self, number: int) -> tuple[Norms, Norms]:
        """By part and by rule, of a step that was made; empty if it was not measured."""
        measured = self._norms.pop(number, None)
        if measured is None:
            return {}, {}
        norms = measured.numbers()
        n_parts = len(self._parts)
        by_part = dict(zip(self._parts, norms[:n_parts], strict=True))
        return by_part, dict(zip(self._groups, norms[n_parts:], strict=True))

    @torch.no_grad()
    def _measure(self, number: int, waits: Callable[[], AbstractContextManager[None]]) -> None:
        mine = {clean_name(name): local(p.grad) for name, p in owned_parameters(self._model) if p.grad is not None}
        held = {name: grad for name, grad in mine.items() if grad.numel()}
        device = device_of_fp64(next(iter(self._model.parameters())).device)
        squares = torch.zeros(len(self._parts) + len(self._groups), dtype=torch.float64, device=device)
        if held:
            each = torch.stack([_norm(grad) for grad in held.values()]).to(device).double().square()
            for places in self._places([*held]):
                squares.index_add_(0, self._sent(tuple(places), device), each)
        squares /= self._copies
        with waits():
            sum_over_ranks(squares)
        before = {one: kept for one, kept in self._norms.items() if one == number - 1}
        self._norms = before | {number: ReadBack(squares.sqrt())}

    def _sent(self, places: tuple[int, ...], device: torch.device) -> Tensor:
        if places not in self._at:
            self._at[places] = sent(torch.tensor(places), device)
        return self._at[places]

    def _places(self, names: list[str]) -> list[list[int]]:
        """Where each parameter counts: among the parts, and among the rules if there are any."""
        parts = [self._parts.index(block_or_module(name)) for name in names]
        groups = [len(self._parts) + self._groups.index(self._rule(name)) for name in names if self._groups]
        return [parts, groups] if groups else [parts]

    def _rule(self, name: str) -> str:
        rule = rule_of(name, self._rules)
        return REST if rule is None else rule.match


def _norm(grad: Tensor) -> Tensor:
    """Summed in fp32 where gradients have fewer bits."""
    few = grad.dtype in (torch.bfloat16, torch.float16)
    return torch.linalg.vector_norm(grad, dtype=torch.float32 if few else None)
