"""The norms of all families. Both kinds compute in fp32 whatever their weights are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard.model.config import ModelConfig
from launchyard.model.network.remade import saved


class ScaledNorm(nn.Module):
    """A norm whose weight is 1 + w (Gemma, Nemotron), or that has none (OLMo)."""

    def __init__(self, size: int, config: ModelConfig) -> None:
        super().__init__()
        self.size = size
        self.eps = config.norm_eps
        self.centred = config.norm == "layernorm"
        self.weight = nn.Parameter(torch.empty(size)) if config.norm_weight == "plus_one" else None
        self.bias = nn.Parameter(torch.empty(size)) if config.norm_bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else 1 + widened(self.weight)
        wide = widened(x)
        if self.centred:
            bias = None if self.bias is None else widened(self.bias)
            return F.layer_norm(wide, (self.size,), weight, bias, self.eps).to(x.dtype)
        return F.rms_norm(wide, (self.size,), weight, self.eps).to(x.dtype)


class _Context(Protocol):
    saved_tensors: tuple[Tensor, Tensor, Tensor]
    make: Callable[..., Tensor]
    read: tuple[Tensor, ...] | None

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _FrozenRMSNorm(torch.autograd.Function):
    """The steps that torch takes on a CPU, but of what they make a number for each vector is kept."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = widened(x)
        factor = wide.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        ctx.make = _normed
        ctx.read = None
        return _normed(x, weight, factor)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, factor = saved(ctx)
        ctx.read = None
        normal = widened(x) * factor
        own = widened(grad) * weight
        own -= normal.mul_((own * normal).mean(-1, keepdim=True))
        return own.mul_(factor).to(x.dtype), None, None


def _normed(x: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
    return (widened(x) * factor).mul_(weight).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm, which off a GPU keeps three copies of its input for the backward where one will do."""

    def forward(self, x: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and x.requires_grad
        if learns and not self.weight.requires_grad and x.device.type == "cpu":
            out: Tensor = _FrozenRMSNorm.apply(x, self.weight, self.eps)
            return out
        return super().forward(x)


class HeadNorm(nn.Module):
    """A norm of each head with a weight of its own: x (…, heads, head_dim)."""

    def __init__(self, heads: int, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.centred = config.norm == "layernorm"
        self.weight = nn.Parameter(torch.empty(heads, config.head_dim))

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[-1],)
        wide = widened(x)
        normal = F.layer_norm(wide, size, eps=self.eps) if self.centred else F.rms_norm(wide, size, eps=self.eps)
        return (normal * widened(self.weight)).to(x.dtype)


def make_norm(config: ModelConfig, size: int | None = None, *, bias: bool = True) -> nn.Module:
    """size: of what is normed; default: the residual stream's. bias: as the config says, or none."""
    width = config.dim if size is None else size
    if config.norm_weight != "plain":
        return ScaledNorm(width, config)
    if config.norm == "rmsnorm":
        return RMSNorm(width, eps=config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=bias and config.norm_bias)


def widened(x: Tensor) -> Tensor:
    """In fp32, or in fp64 where it is that."""
    return x if x.dtype == torch.float64 else x.float()
