"""Adafactor (Shazeer & Stern 2018): of a matrix's second moments only the means of rows and columns are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from launchyard.model.network.transfers import in_fp64
from launchyard.training.optim.base import InPlace, ParameterGroup, StateTensor, given
from launchyard.training.parallel import local, shard_group, sum_over_shards
from launchyard.training.sections.optimizer import OptimizerConfig

EPS = torch.finfo(torch.float32).eps  # the least root of a second moment
LEAST_SCALE = 1e-3  # of a parameter, by which its steps are scaled
CLIP = 1.0  # the largest root mean square of an update, before that scale


class Adafactor(InPlace):
    """As torch.optim.Adafactor, for matrices whose rows are cut over ranks, too.

    Then a row's mean stays on its rank, and a column's mean is a sum over the ranks, kept whole on each of them. Two
    collectives a step: of columns and sizes of parameters, and of the sizes of updates. The experts of a layer, cut by
    expert, are matrices on their own.
    """

    def __init__(self, groups: Sequence[ParameterGroup], config: OptimizerConfig) -> None:
        super().__init__(groups)
        self._beta2_decay = given(config.beta2_decay)
        self._low_memory = given(config.low_memory)
        self._ranks = shard_group(next(iter(self._state)).detach())
        for p, state in self._state.items():
            part = local(p.detach())
            if part.ndim < 2:
                state["variance"] = StateTensor(torch.zeros_like(part))
                continue
            *lead, rows, columns = part.shape
            state["row_variance"] = StateTensor(part.new_zeros(*lead, rows, 1))
            state["column_variance"] = StateTensor(part.new_zeros(*lead, 1, columns), is_whole=not lead)

    @torch.no_grad()
    def step(self, number: int, lr: float) -> None:
        trained = [(group, p) for group in self._groups for p in group.parameters if p.grad is not None]
        row_means, sizes = self._take_in([p for _, p in trained], number**self._beta2_decay)
        updates = self._updates([p for _, p in trained], row_means)
        kept = [] if self._low_memory else list(updates)
        squares = [_square(update) for update in kept or updates]
        update_sizes = torch.stack(sum_over_shards(squares, self._ranks)).sqrt().tolist()
        again = kept or self._updates([p for _, p in trained], row_means)
        for (group, p), update, size, update_size in zip(trained, again, sizes, update_sizes, strict=True):
            weight = local(p.detach())
            scaled = lr * group.lr_scale
            root = math.sqrt(p.numel())
            alpha = max(LEAST_SCALE, size / root) * min(scaled, 1 / math.sqrt(number))
            if group.weight_decay:
                weight.mul_(1 - scaled * group.weight_decay)
            weight.add_(update, alpha=-alpha / max(1.0, update_size / (root * CLIP)))

    def _take_in(self, parameters: Sequence[nn.Parameter], share: float) -> tuple[list[Tensor | None], list[float]]:
        """Move the variances towards these gradients. (Means of the rows' variances, lengths of the parameters)."""
        cut: list[Tensor] = []  # what is a sum over the ranks: of each matrix its columns and its rows, of all a size
        for p in parameters:
            grad = local(p.grad)
            if p.ndim > 1:
                rows = self._moment(p, "row_variance")
                rows.lerp_(torch.norm(grad, dim=-1, keepdim=True).square_().div_(grad.shape[-1]), share)
            if p.ndim == 2:
                cut += [torch.norm(grad, dim=0, keepdim=True).square_(), rows.sum(dim=0, keepdim=True)]
            cut.append(_square(local(p.detach())))
        summed = iter(sum_over_shards(cut, self._ranks))
        means: list[Tensor | None] = []
        squares = []
        for p in parameters:
            means.append(self._means_of(p, share, summed))
            squares.append(next(summed))
        return means, torch.stack(squares).sqrt().tolist()

    def _means_of(self, p: nn.Parameter, share: float, summed: Iterator[Tensor]) -> Tensor | None:
        grad = local(p.grad)
        if p.ndim < 2:
            self._moment(p, "variance").lerp_(grad * grad, share)
            return None
        columns = self._moment(p, "column_variance")
        if p.ndim == 2:
            columns.lerp_(next(summed).div_(p.shape[0]), share)
            return next(summed).div_(p.shape[0])
        columns.lerp_(torch.norm(grad, dim=-2, keepdim=True).square_().div_(grad.shape[-2]), share)
        return self._moment(p, "row_variance").mean(dim=-2, keepdim=True)

    def _updates(self, parameters: Sequence[nn.Parameter], row_means: Sequence[Tensor | None]) -> Iterator[Tensor]:
        """Gradients over the roots of their variances, one after the other."""
        for p, mean in zip(parameters, row_means, strict=True):
            if mean is None:
                variance = self._moment(p, "variance").clone()
            else:
                variance = self._moment(p, "row_variance") @ self._moment(p, "column_variance")
                variance.div_(mean.clamp(min=EPS))
            yield variance.clamp_(min=EPS * EPS).rsqrt_().mul_(local(p.grad))


def _square(tensor: Tensor) -> Tensor:
    """The sum of its squares, in fp64: its root is the norm again, bit for bit."""
    return in_fp64(torch.norm(tensor)).square()
