"""Sequences of which each of several ranks has a stretch of tokens: attention alone needs the keys of the others.

Knows no parameter: gradients of what all ranks have are summed where those of a batch are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launchyard.model.network.attention import Attending
from launchyard.model.network.transformer import Transformer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class SpanRanks:
    """This process among those that share each sequence, in order, in equal stretches."""

    rank: int
    count: int
    group: ProcessGroup

    def joined(self, x: Tensor) -> Tensor:
        """x (B, H, t, D) of each -> (B, H, count t, D); gradients go back to where they belong."""
        out: Tensor = _Joined.apply(x, self)
        return out

    def own(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> (B, t)"""
        return tokens.chunk(self.count, dim=1)[self.rank]


class _Context(Protocol):
    ranks: SpanRanks


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, ranks: SpanRanks) -> Tensor:
        ctx.ranks = ranks
        found = x.new_empty(ranks.count * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(found, x.contiguous(), group=ranks.group)
        return torch.cat(found.chunk(ranks.count), dim=2)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None]:
        parts = torch.cat(grad.chunk(ctx.ranks.count, dim=2))
        out = grad.new_empty(parts.shape[0] // ctx.ranks.count, *parts.shape[1:])
        dist.reduce_scatter_tensor(out, parts, group=ctx.ranks.group)
        return out, None


def span_over(model: Transformer, ranks: SpanRanks) -> None:
    """From here on each rank gives the model its own stretch of each sequence."""
    model.span = ranks
    for module in model.modules():
        if isinstance(module, Attending):
            module.span = ranks


def span_of(model: nn.Module) -> SpanRanks | None:
    """Of a model that may be wrapped by FSDP."""
    found: SpanRanks | None = getattr(model, "span", None)
    return found
