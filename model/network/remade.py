"""Inputs of low-rank updates that a backward makes again out of what the operation before them keeps anyway.

An operation that can do that says how: its `make` gives its output for the tensors that it keeps. Knows no module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F


class Maker(Protocol):
    """The node in autograd's graph of an operation whose output can be made again, to the bit."""

    saved_tensors: tuple[Tensor, ...]
    make: Callable[..., Tensor]
    read: tuple[Tensor, ...] | None


def saved(node: Maker) -> tuple[Tensor, ...]:
    """What a node keeps. The node's own backward clears `read`: a recomputed block gives its tensors only once."""
    if node.read is None:
        node.read = node.saved_tensors
    return node.read


class _Context(Protocol):
    saved_tensors: tuple[Tensor]
    maker: Maker

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _InnerAgain(torch.autograd.Function):
    """x @ a.T, of whose inputs a is kept alone."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, a: Tensor, maker: Maker) -> Tensor:
        ctx.save_for_backward(a)
        ctx.maker = maker
        return F.linear(x, a)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (a,) = ctx.saved_tensors
        x = ctx.maker.make(*saved(ctx.maker))
        return grad @ a, grad.flatten(0, -2).t() @ x.flatten(0, -2), None


def inner(x: Tensor, a: Tensor) -> Tensor:
    """x @ a.T. x (…, in), a (r, in). x is not kept where the operation that made it can make it again."""
    if torch.compiler.is_compiling() or not hasattr(x.grad_fn, "make"):
        return F.linear(x, a)
    out: Tensor = _InnerAgain.apply(x, a, cast(Maker, x.grad_fn))
    return out
