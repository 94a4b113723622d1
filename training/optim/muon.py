"""Muon (Jordan et al. 2024): steps along orthogonal matrices, for the matrices of the blocks; AdamW for all else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from launchyard.training.optim.adamw import AdamW
from launchyard.training.optim.base import InPlace, ParameterGroup, StateTensor, given
from launchyard.training.optim.state_size import is_hidden
from launchyard.training.parallel import local, shard_group, shard_rows
from launchyard.training.sections.optimizer import OptimizerConfig

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# A quintic that lifts singular values towards 1 within five rounds, and its least norm (Jordan's).
QUINTIC = (3.4445, -4.7750, 2.0315)
QUINTIC_ROUNDS = 5
EPS = 1e-7


class Muon(InPlace):
    """As torch.optim.Muon, beside AdamW for tables, the head and vectors.

    A matrix whose rows are cut over ranks is brought together on one of them, each rank taking another matrix; all
    ranks then have what one alone would compute. Experts, cut by expert, are matrices on their own.
    """

    def __init__(self, groups: Sequence[ParameterGroup], config: OptimizerConfig) -> None:
        super().__init__(groups)
        self._momentum = given(config.momentum)
        self._nesterov = given(config.nesterov)
        self._scale = given(config.update_scale)
        self._ranks = shard_group(next(iter(self._state)).detach())
        rest = [_part_of(group, hidden=False) for group in groups]
        self._groups = tuple(group for group in (_part_of(group, hidden=True) for group in groups) if group.parameters)
        self._adamw = AdamW(rest, config) if any(group.parameters for group in rest) else None
        for group in self._groups:
            for p in group.parameters:
                self._state[p]["momentum"] = StateTensor(torch.zeros_like(local(p.detach())))
        for group in rest:
            for p in group.parameters:
                self._state[p] = dict(self._adamw.state(p)) if self._adamw else {}

    @torch.no_grad()
    def step(self, number: int, lr: float) -> None:
        if self._adamw is not None:
            self._adamw.step(number, lr)
        pairs = [(group, p) for group in self._groups for p in group.parameters if p.grad is not None]
        for at_once in _rounds(pairs, self._ranks):
            directions = _orthogonal([p for _, p in at_once], [self._mean(p) for _, p in at_once], self._ranks)
            for (group, p), direction in zip(at_once, directions, strict=True):
                scaled = lr * group.lr_scale
                weight = local(p.detach())
                weight.mul_(1 - scaled * group.weight_decay)
                weight.add_(direction, alpha=-scaled * self._factor(p.shape[-2], p.shape[-1]))

    def _mean(self, p: nn.Parameter) -> Tensor:
        """This rank's rows of the mean gradient."""
        grad = local(p.grad)
        mean = self._moment(p, "momentum").lerp_(grad, 1 - self._momentum)
        return grad.lerp(mean, self._momentum) if self._nesterov else mean

    def _factor(self, rows: int, columns: int) -> float:
        if self._scale == "match-adamw":  # an update's root mean square, as AdamW's is (Liu et al. 2025)
            return 0.2 * math.sqrt(max(rows, columns))
        return math.sqrt(max(1, rows / columns))


def _part_of(group: ParameterGroup, *, hidden: bool) -> ParameterGroup:
    mine = [
        (name, p) for name, p in zip(group.names, group.parameters, strict=True) if is_hidden(name, p.shape) == hidden
    ]
    return replace(group, names=tuple(name for name, _ in mine), parameters=tuple(p for _, p in mine))


def _rounds(
    pairs: Sequence[tuple[ParameterGroup, nn.Parameter]], group: ProcessGroup | None
) -> Iterator[Sequence[tuple[ParameterGroup, nn.Parameter]]]:
    """Matrices whose steps are made together: of those that are cut as many as there are ranks, of others one."""
    is_cut = [group is not None and p.ndim == 2 for _, p in pairs]
    together = [pair for pair, cut in zip(pairs, is_cut, strict=True) if cut]
    for pair, cut in zip(pairs, is_cut, strict=True):
        if not cut:
            yield [pair]
    count = 1 if group is None else group.size()
    yield from (together[start : start + count] for start in range(0, len(together), count))


def _orthogonal(
    parameters: Sequence[nn.Parameter], parts: Sequence[Tensor], group: ProcessGroup | None
) -> Sequence[Tensor]:
    """This rank's rows of the orthogonal matrix nearest to each; of a cut one from its own rows, in two collectives.

    There may be fewer matrices than ranks.
    """
    if group is None or parameters[0].ndim > 2:
        return [newton_schulz(part) if part.numel() else part for part in parts]
    import torch.distributed as dist

    ranks = group.size()
    sent = torch.cat([part.reshape(-1) for part in parts])
    here = [part.numel() for part in parts] + [0] * (ranks - len(parts))
    rows, columns = parameters[group.rank()].shape if group.rank() < len(parameters) else (0, 0)
    there = [count * columns for count in shard_rows(rows, ranks)]
    matrix = sent.new_empty(rows * columns)
    dist.all_to_all_single(matrix, sent, there, here, group=group)
    if rows:
        matrix = newton_schulz(matrix.view(rows, columns)).to(sent.dtype).reshape(-1)
    returned = torch.empty_like(sent)
    dist.all_to_all_single(returned, matrix, here, there, group=group)
    pieces = returned.split(here)
    return [piece.view_as(part) for piece, part in zip(pieces, parts, strict=False)]


def newton_schulz(matrix: Tensor) -> Tensor:
    """Nearly U V^T of its singular value decomposition, in bf16; singular values end near 1. (…, rows, columns)"""
    a, b, c = QUINTIC
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT.bfloat16() if is_tall else matrix.bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    add_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(QUINTIC_ROUNDS):
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
