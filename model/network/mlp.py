"""The part of a block that works on each token alone: an MLP, or a few experts out of many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard.model.config import ModelConfig, MoE
from launchyard.model.network.documents import Documents
from launchyard.model.network.linear import Linear, OpaqueLinear
from launchyard.model.network.low_rank import together
from launchyard.model.network.norms import widened
from launchyard.model.network.remade import saved
from launchyard.model.network.transfers import sent
from launchyard.model.network.uncompiled import uncompiled

CLAMP = 7.0  # of gpt-oss
SWISH = 1.702  # the sigmoid that is nearest to GELU's, as gpt-oss has it


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gated = config.gated_mlp
        self.parts = ("gate_proj", "up_proj") if config.gated_mlp else ()
        self.joint: nn.Module | None = None  # instead of the parts, see Attention
        if config.gated_mlp:
            self.gate_proj = Linear(config.dim, config.ffn_dim, bias=config.mlp_bias)
        self.up_proj = Linear(config.dim, config.ffn_dim, bias=config.mlp_bias)
        self.down_proj = Linear(config.ffn_dim, config.dim, bias=config.mlp_bias)

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        joint = self.joint
        if joint is not None:
            return self.down_proj(gate(self.activation, *joint(x).chunk(2, dim=-1)))
        if self.gated:
            gate_proj = self.gate_proj
            if type(gate_proj) is Linear or isinstance(gate_proj, OpaqueLinear):
                return self.down_proj(gate(self.activation, gate_proj(x), self.up_proj(x)))
            again = x.device.type == "cpu"
            return self.down_proj(gate(self.activation, *together(x, gate_proj, self.up_proj), again=again))
        return self.down_proj(activate(self.activation, self.up_proj(x)))


class SharedExpert(nn.Module):
    """The expert that every token goes through."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate_proj = Linear(config.dim, width, bias=False)
        self.up_proj = Linear(config.dim, width, bias=False)
        self.down_proj = Linear(width, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gate(self.activation, self.gate_proj(x), self.up_proj(x)))


@uncompiled
def _uncompiled_grouped_mm(x: Tensor, weight: Tensor, *, offs: Tensor) -> Tensor:
    """torch's compiler has this product for bf16 only; a graph ends before it and goes on behind it.

    For fp64 there is none at all.
    """
    if x.dtype == torch.float64:
        pieces = x.tensor_split(offs[:-1].cpu().long())
        return torch.cat([piece @ own for piece, own in zip(pieces, weight, strict=True)])
    return F.grouped_mm(x, weight, offs=offs)


class ExpertProjection(nn.Module):
    """A projection of every expert: weight (E, out, in), bias (E, out)."""

    def __init__(self, moe: MoE, inner: int, outer: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(moe.n_experts, outer, inner))
        self.bias = nn.Parameter(torch.empty(moe.n_experts, outer)) if moe.bias else None

    def forward(self, x: Tensor, ends: Tensor, experts: Tensor) -> Tensor:
        """x (N, in), sorted by expert; ends (E,) int32, where each expert's rows end; experts (N,) of each row."""
        weight = self.weight.to(x.dtype).transpose(-2, -1)
        product = F.grouped_mm if x.dtype == torch.bfloat16 else _uncompiled_grouped_mm
        out = product(x, weight, offs=ends)
        return out if self.bias is None else out + self.bias.to(x.dtype)[experts]


class Experts(nn.Module):
    def __init__(self, config: ModelConfig, moe: MoE) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate_proj = ExpertProjection(moe, config.dim, moe.ffn_dim)
        self.up_proj = ExpertProjection(moe, config.dim, moe.ffn_dim)
        self.down_proj = ExpertProjection(moe, moe.ffn_dim, config.dim)

    def forward(self, x: Tensor, ends: Tensor, experts: Tensor) -> Tensor:
        gated = self.gate_proj(x, ends, experts)
        up = self.up_proj(x, ends, experts)
        return self.down_proj(gate(self.activation, gated, up), ends, experts)


class _WithLoss(torch.autograd.Function):
    """x as it is; the backward goes through `loss` too, as if it had been added to what the model is trained for."""

    @staticmethod
    def forward(ctx: object, x: Tensor, loss: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.ones((), dtype=torch.float32, device=grad.device)


def imbalance(shares: Tensor, chosen: Tensor) -> Tensor:
    """Summed over sequences: n_experts * sum over experts of (choices of it a token) * (its mean share). fp32 scalar.

    shares (B, T, E): of each expert in a token's scores, with sum 1; chosen (B, T, top_k). As even as can be, that is
    top_k a sequence (Fedus et al. 2022, section 2.2; for each sequence alone: DeepSeek-V3, section 2.1.2).
    """
    counts = torch.zeros(shares.shape[0], shares.shape[2], device=shares.device)
    counts.scatter_add_(1, chosen.flatten(1), torch.ones((), device=shares.device).expand_as(chosen.flatten(1)))
    return (counts / shares.shape[1] * shares.mean(1)).sum() * shares.shape[2]


@uncompiled  # a graph would be compiled for each set of lengths
def imbalance_of_documents(shares: Tensor, chosen: Tensor, documents: Documents) -> Tensor:
    """`imbalance` of each document alone, weighed by its part of a row. shares (N, E); chosen (N, top_k).

    So it does not depend on the rows that documents are packed in, or on their neighbours.
    """
    lengths = sent(torch.tensor(documents.lengths, dtype=torch.float32), shares.device)[:, None]
    numbers = documents.numbers(shares.device)
    empty = shares.new_zeros(len(documents.lengths), shares.shape[1])
    means = empty.index_add(0, numbers, shares) / lengths
    ones = torch.ones((), device=shares.device, dtype=shares.dtype)
    places = (numbers[:, None] * shares.shape[1] + chosen).flatten()
    counts = empty.flatten().index_add(0, places, ones.expand_as(places)).view_as(empty) / lengths
    return (counts * means * lengths).sum() * shares.shape[1] / documents.row_length


class MixtureOfExperts(nn.Module):
    """Each token goes through its top_k experts: rows are sorted by expert, and each projection is one product."""

    def __init__(self, config: ModelConfig, moe: MoE) -> None:
        super().__init__()
        self.moe = moe
        self.balance_weight = 0.0  # of `imbalance`, in what the model is trained for
        self.router = Linear(config.dim, moe.n_experts, bias=moe.bias)
        self.choice_bias = nn.Parameter(torch.empty(moe.n_experts), requires_grad=False) if moe.choice_bias else None
        self.experts = Experts(config, moe)
        self.shared = SharedExpert(config, moe.shared_ffn_dim) if moe.shared_ffn_dim else None
        self.shared_gate = Linear(config.dim, 1, bias=False) if moe.shared_gate else None

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        rows = x.flatten(0, -2)  # (N, dim)
        logits = self._logits(rows)
        scores, chosen = self._choose(logits)
        order = chosen.flatten().argsort(stable=True)
        experts = chosen.flatten()[order]
        numbers = torch.arange(self.moe.n_experts, device=x.device)
        ends = torch.searchsorted(experts, numbers, right=True, out_int32=True)  # bincount would wait for the device
        weights = scores.flatten()[order, None].to(x.dtype)
        taken = rows[order // self.moe.top_k]
        if self.moe.scale_input:
            out = self.experts(taken * weights, ends, experts)
        else:
            out = self.experts(taken, ends, experts) * weights
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        mixed = out[back].unflatten(0, (-1, self.moe.top_k)).sum(1).view_as(x)
        if self.balance_weight and torch.is_grad_enabled() and not (documents and documents.is_padding):
            shares = self._shares(logits)
            if documents is None:
                uneven = imbalance(shares.view(*x.shape[:-1], -1), chosen.view(*x.shape[:-1], -1))
            else:
                uneven = imbalance_of_documents(shares, chosen, documents)
            mixed = _WithLoss.apply(mixed, uneven * self.balance_weight)
        if self.shared is None:
            return mixed
        always = self.shared(x)
        return mixed + (always if self.shared_gate is None else always * self.shared_gate(x).sigmoid())

    def route(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows (N, dim) -> scores and numbers of the chosen experts, each (N, top_k); the scores are fp32."""
        return self._choose(self._logits(rows))

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        moe = self.moe
        if moe.score == "near_softmax":
            return self._one_by_one(logits)
        if moe.score_after_choice:
            top, chosen = logits.topk(moe.top_k, dim=-1)
            return torch.softmax(top, dim=-1) * moe.scale, chosen
        scores = torch.softmax(logits, dim=-1) if moe.score == "softmax" else logits.sigmoid()
        ranked = scores if self.choice_bias is None else scores + self.choice_bias.float()
        chosen = self._among_groups(ranked).topk(moe.top_k, dim=-1).indices
        picked = scores.gather(-1, chosen)
        if moe.normalize:
            picked = picked / (picked.sum(-1, keepdim=True) + 1e-20)
        return picked * moe.scale, chosen

    def _shares(self, logits: Tensor) -> Tensor:
        """Scores (N, E) of all experts, chosen or not, with sum 1."""
        if self.moe.score != "sigmoid":
            return torch.softmax(logits, dim=-1)
        scores = logits.sigmoid()
        return scores / scores.sum(-1, keepdim=True)

    def _logits(self, rows: Tensor) -> Tensor:
        if not self.moe.wide_router:
            return widened(self.router(rows))
        bias = self.router.bias
        return F.linear(widened(rows), widened(self.router.weight), None if bias is None else widened(bias))

    def _one_by_one(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """SparseMixer (Liu et al. 2023) without its sampling: the best expert, then the best of the rest …"""
        scores = []
        chosen = []
        left = logits
        for _ in range(self.moe.top_k):
            best, number = left.max(-1, keepdim=True)
            far = (best - logits) / torch.maximum(logits.abs(), best) > 2 * self.moe.nearness
            scores.append(torch.softmax(left.masked_fill(far, -torch.inf), dim=-1).gather(-1, number))
            chosen.append(number)
            left = left.scatter(-1, number, -torch.inf)
        return torch.cat(scores, dim=-1) * self.moe.scale, torch.cat(chosen, dim=-1)

    def _among_groups(self, ranked: Tensor) -> Tensor:
        """Scores (N, E) with those of the groups that are not chosen left out."""
        moe = self.moe
        if moe.top_groups == moe.n_groups:
            return ranked
        groups = ranked.unflatten(-1, (moe.n_groups, -1))
        best = groups.amax(-1) if moe.group_score == "max" else groups.topk(2, dim=-1).values.sum(-1)
        kept = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, best.topk(moe.top_groups, dim=-1).indices, True)
        return groups.masked_fill(~kept[..., None], 0.0 if moe.group_score == "max" else -torch.inf).flatten(-2)


def activate(kind: str, x: Tensor) -> Tensor:
    if kind == "silu":
        return F.silu(x)
    if kind == "relu":
        return F.relu(x)
    if kind == "relu2":
        return F.relu(x).square()
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


class _Context(Protocol):
    saved_tensors: tuple[Tensor, Tensor]
    make: Callable[..., Tensor]
    read: tuple[Tensor, ...] | None

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _GateAgain(torch.autograd.Function):
    """silu(gated) * up; the activation is made again in the backward instead of kept."""

    @staticmethod
    def forward(ctx: _Context, gated: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gated, up)
        ctx.make = _gated
        ctx.read = None
        return _gated(gated, up)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, Tensor]:
        gated, up = saved(ctx)
        ctx.read = None
        of_gated = torch.ops.aten.silu_backward(up * grad, gated)
        return of_gated, F.silu(gated).mul_(grad)


def _gated(gated: Tensor, up: Tensor) -> Tensor:
    return F.silu(gated).mul_(up)


def gate(kind: str, gated: Tensor, up: Tensor, *, again: bool = False) -> Tensor:
    """The activation of one projection times another. again: keep less for a longer backward."""
    if again and kind == "silu" and torch.is_grad_enabled():
        out: Tensor = _GateAgain.apply(gated, up)
        return out
    if kind == "clamped_swish":
        low = gated.clamp(max=CLAMP)
        return (up.clamp(-CLAMP, CLAMP) + 1) * (low * torch.sigmoid(SWISH * low))
    return activate(kind, gated) * up
