"""Causal attention: grouped heads, positions, windows, and an optional cache of keys and values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention as sdpa

from launchyard.model.config import LatentAttention, ModelConfig
from launchyard.model.network.documents import Documents
from launchyard.model.network.kv_cache import BlockCache
from launchyard.model.network.linear import Linear, OpaqueLinear
from launchyard.model.network.low_rank import together
from launchyard.model.network.norms import HeadNorm, make_norm, widened
from launchyard.model.network.remade import saved
from launchyard.model.network.rope import rotate, yarn_gain
from launchyard.model.network.uncompiled import uncompiled

Rotation = tuple[Tensor, Tensor]  # cosines and sines


def by_token(heads: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, H D)"""
    return heads.transpose(1, 2).flatten(-2)


class _Context(Protocol):
    saved_tensors: tuple[Tensor, ...]
    make: Callable[..., Tensor]
    read: tuple[Tensor, ...] | None

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _EndToEnd(torch.autograd.Function):
    """What heads saw, (1, H, T, D) of each document, as (1, N, H D). Keeps its inputs, as a fused kernel does."""

    @staticmethod
    def forward(ctx: _Context, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        ctx.make = _end_to_end
        ctx.read = None
        return _end_to_end(*parts)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, ...]:
        parts = saved(ctx)
        ctx.read = None
        lengths = [part.shape[2] for part in parts]
        return tuple(own.transpose(1, 2) for own in grad.unflatten(-1, (parts[0].shape[1], -1)).split(lengths, dim=1))


def _end_to_end(*parts: Tensor) -> Tensor:
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1).flatten(-2)


class AttentionDropout(Protocol):
    """Leaves out attention weights while a model trains; see model/adapt/noise.py."""

    def is_on(self) -> bool: ...

    def dropped_weights(self, weights: Tensor, start: int) -> Tensor: ...


class Scores:
    """What stands between queries and values: scale, soft cap, mask, sinks. Holds no parameter."""

    def __init__(self, config: ModelConfig, *, scale: float | None) -> None:
        self.scale = scale
        self.softcap = config.attention_softcap
        self.grouped = config.n_kv_heads != config.n_heads and config.latent_attention is None
        self.noise: AttentionDropout | None = None
        self.per_head = config.positions == "alibi" or config.attention_sinks or self.softcap is not None

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        sinks: Tensor | None,
        *,
        causal: bool,
        start: int = 0,
    ) -> Tensor:
        """q (B, H, T, D), k and v (B, H_kv, S, …) -> (B, H, T, D_v). mask: bool or added, broadcast to (B, H, T, S).

        start: of a document in the row that it lies in.
        """
        noise = self.noise if self.noise is not None and self.noise.is_on() else None
        if self.softcap is not None:
            return self._by_hand(q, k, v, mask, causal=causal, noise=noise, start=start)
        if sinks is not None:
            mask = _added(mask, q, k, causal=causal)
            k, v, mask = _with_sinks(k, v, mask, sinks)
            causal = False
        if noise is not None:
            return self._by_hand(q, k, v, mask, causal=causal, noise=noise, start=start)
        # A group as queries of one head: no key is repeated.
        if self.grouped and not self.per_head and q.shape[2] == 1 and q.shape[3] == v.shape[3]:
            together = q.reshape(q.shape[0], k.shape[1], -1, q.shape[-1])
            return sdpa(together, k, v, attn_mask=mask, scale=self.scale).reshape(q.shape)
        causal = causal and mask is None
        return sdpa(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.grouped, scale=self.scale)

    def by_document(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None, documents: Documents
    ) -> Tensor:
        """The same of each document alone, (1, N, H D_v). mask: of the longest."""
        noisy = self.noise is not None and self.noise.is_on()
        if mask is None and sinks is None and not noisy and self._has_kernel(q, v):
            return self._varlen(q, k, v, documents)
        return self._one_by_one(q, k, v, mask, sinks, documents)

    @uncompiled  # a graph would be compiled for each set of lengths
    def _one_by_one(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None, documents: Documents
    ) -> Tensor:
        parts = []
        start = 0
        wholes = (whole.split(documents.lengths, dim=2) for whole in (q, k, v))
        for own_q, own_k, own_v in zip(*wholes, strict=True):
            length = own_q.shape[2]
            seen = None if mask is None else mask[..., :length, :length]
            parts.append(self(own_q, own_k, own_v, seen, sinks, causal=True, start=start))
            start += length
        out: Tensor = _end_to_end(*parts) if self.per_head else _EndToEnd.apply(*parts)
        return out

    def _has_kernel(self, q: Tensor, v: Tensor) -> bool:
        """True where one kernel of the GPU does all documents: FlashAttention, on Ampere and newer."""
        head = q.shape[-1]
        if self.per_head or q.device.type != "cuda" or q.dtype not in (torch.bfloat16, torch.float16):
            return False
        if head != v.shape[-1] or head % 8 or head > 256:
            return False
        return torch.cuda.get_device_capability(q.device)[0] >= 8

    @uncompiled  # as above
    def _varlen(self, q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        bounds = documents.bounds(q.device)
        longest = documents.longest
        q, k, v = (part[0].transpose(0, 1) for part in (q, k, v))  # (N, H, D)
        out = varlen_attn(
            q, k, v, bounds, bounds, longest, longest,
            scale=self.scale, window_size=(-1, 0), enable_gqa=self.grouped,
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return out.flatten(-2)[None]

    def _by_hand(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        *,
        causal: bool,
        noise: AttentionDropout | None,
        start: int,
    ) -> Tensor:
        """All weights in memory: for what no kernel has between queries and keys, or between weights and values."""
        repeats = q.shape[1] // k.shape[1]
        k = k.repeat_interleave(repeats, 1)
        v = v.repeat_interleave(repeats, 1)
        scores = q @ k.transpose(-2, -1) * (1 / math.sqrt(q.shape[-1]) if self.scale is None else self.scale)
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        weights = torch.softmax(widened(scores + _added(mask, q, k, causal=causal)), dim=-1)
        if noise is not None:
            weights = noise.dropped_weights(weights, start)
        return weights.to(v.dtype) @ v


class Span(Protocol):
    """A stretch of a sequence whose other stretches others have, `count` in all."""

    @property
    def rank(self) -> int: ...

    @property
    def count(self) -> int: ...

    def joined(self, x: Tensor) -> Tensor:
        """x (B, H, t, D) of each -> (B, H, count t, D)"""
        ...


class Attending(nn.Module):
    """What both kinds of attention do with queries, keys and values."""

    scores: Scores
    sinks: nn.Parameter | None
    span: Span | None = None  # of the queries

    def attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        cache: BlockCache | None,
        documents: Documents | None,
    ) -> Tensor:
        """q (B, H, T, D), k and v (B, H_kv, T, …) of the new tokens -> (B, T, H D_v)."""
        causal = True
        if self.span is not None:
            k = self.span.joined(k)
            v = self.span.joined(v)
        if cache is not None:
            k, v, mask, causal = cache.update(k, v, mask)
        if documents is None:
            return by_token(self.scores(q, k, v, mask, self.sinks, causal=causal))
        return self.scores.by_document(q, k, v, mask, self.sinks, documents)


class Attention(Attending):
    parts = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.clip = config.qkv_clip
        self.qk_norm = config.qk_norm
        heads = config.n_heads * config.head_dim
        kv = config.n_kv_heads * config.head_dim
        self.widths = (heads, kv, kv)
        # What is done to each before queries and keys turn.
        self.between = config.qk_norm not in (None, "unit") or config.qkv_clip is not None
        self.joint: nn.Module | None = None  # instead of the parts in a model that only writes: one product for all
        qkv_bias = config.attention_bias or config.qkv_bias
        self.q_proj = Linear(config.dim, heads, bias=qkv_bias)
        self.k_proj = Linear(config.dim, kv, bias=qkv_bias)
        self.v_proj = Linear(config.dim, kv, bias=qkv_bias)
        self.o_proj = Linear(heads, config.dim, bias=config.attention_bias)
        if config.qk_norm in ("head", "width", "each"):
            self.q_norm = _qk_norm(config, config.n_heads)
            self.k_norm = _qk_norm(config, config.n_kv_heads)
        self.sinks = nn.Parameter(torch.empty(config.n_heads)) if config.attention_sinks else None
        self.scores = Scores(config, scale=config.attention_scale)
        self.norm_eps = config.norm_eps

    def forward(
        self,
        x: Tensor,
        turn: Rotation | None,
        mask: Tensor | None,
        far: Tensor | None,
        cache: BlockCache | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """x (B, T, dim). turn: of a layer that rotates. far: (T, 1, 1), what queries of one that does not grow by."""
        q, k, v = self._projected(x) if turn is None else self._turned(x, turn)
        if turn is not None and self.qk_norm == "unit":
            size = (self.head_dim,)
            q = F.rms_norm(q, size, eps=self.norm_eps)
            k = F.rms_norm(k, size, eps=self.norm_eps)
        elif turn is None and far is not None:
            q = (q * far).to(q.dtype)
        q = q.transpose(1, 2)  # (B, H, T, head_dim)
        k = k.transpose(1, 2)
        v = v.transpose(1, 2)
        return self.o_proj(self.attended(q, k, v, mask, cache, documents))

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, T, heads, head_dim), normed where they are normed before they turn."""
        joint = self.joint
        if joint is not None:
            q, k, v = joint(x).split(self.widths, dim=-1)
        elif type(q_proj := self.q_proj) is Linear or isinstance(q_proj, OpaqueLinear):
            q = q_proj(x)
            k = self.k_proj(x)
            v = self.v_proj(x)
        else:
            q, k, v = together(x, q_proj, self.k_proj, self.v_proj)
        if self.qk_norm == "width":
            q = self.q_norm(q)
            k = self.k_norm(k)
        heads = (-1, self.head_dim)
        q = q.unflatten(-1, heads)
        k = k.unflatten(-1, heads)
        v = v.unflatten(-1, heads)
        if self.qk_norm in ("head", "each"):
            q = self.q_norm(q)
            k = self.k_norm(k)
        if self.clip is not None:
            q, k, v = (part.clamp(-self.clip, self.clip) for part in (q, k, v))
        return q, k, v

    def _turned(self, x: Tensor, turn: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """As _projected, queries and keys turned: both at once where nothing comes between.

        For one token each operation costs its start alone.
        """
        if self.joint is None or self.between:
            q, k, v = self._projected(x)
            return rotate(q, *turn), rotate(k, *turn), v
        n_q, n_k, n_v = (width // self.head_dim for width in self.widths)
        heads = self.joint(x).unflatten(-1, (-1, self.head_dim))
        turning, v = heads.split((n_q + n_k, n_v), dim=-2)
        q, k = rotate(turning, *turn).split((n_q, n_k), dim=-2)
        return q, k, v


class LatentAttentionLayer(Attending):
    """Keys and values out of a short vector a token (DeepSeek-V2, section 2.1)."""

    def __init__(self, config: ModelConfig, sizes: LatentAttention) -> None:
        super().__init__()
        self.sizes = sizes
        queries = config.n_heads * (sizes.nope_dim + sizes.rope_dim)
        bias = config.attention_bias
        if sizes.q_rank is None:
            self.q_proj = Linear(config.dim, queries, bias=False)
        else:
            self.q_a_proj = Linear(config.dim, sizes.q_rank, bias=bias)
            self.q_a_norm = nn.RMSNorm(sizes.q_rank, eps=LATENT_EPS)
            self.q_b_proj = Linear(sizes.q_rank, queries, bias=False)
        self.kv_a_proj = Linear(config.dim, sizes.kv_rank + sizes.rope_dim, bias=bias)
        self.kv_a_norm = nn.RMSNorm(sizes.kv_rank, eps=LATENT_EPS)
        self.kv_b_proj = Linear(sizes.kv_rank, config.n_heads * (sizes.nope_dim + sizes.v_dim), bias=False)
        self.o_proj = Linear(config.n_heads * sizes.v_dim, config.dim, bias=bias)
        self.sinks = None
        self.scores = Scores(config, scale=latent_scale(config, sizes))

    def forward(
        self,
        x: Tensor,
        turn: Rotation | None,
        mask: Tensor | None,
        far: Tensor | None,
        cache: BlockCache | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        sizes = self.sizes
        whole = self.q_proj(x) if sizes.q_rank is None else self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))
        whole = whole.unflatten(-1, (-1, sizes.nope_dim + sizes.rope_dim))
        q_nope, q_rope = whole.split((sizes.nope_dim, sizes.rope_dim), dim=-1)
        k_nope, k_rope, v = self._keys_and_values(x)
        if turn is not None:
            q_rope = rotate(q_rope, *turn)
            k_rope = rotate(k_rope, *turn)
        q = torch.cat((q_nope, q_rope), dim=-1).transpose(1, 2)
        k = self._whole_keys(k_nope, k_rope)
        v = v.transpose(1, 2)
        return self.o_proj(self.attended(q, k, v, mask, cache, documents))

    def _keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The parts of keys that do not turn and that do, and values, each (B, T, heads or 1, …)."""
        sizes = self.sizes
        latent, k_rope = self.kv_a_proj(x).split((sizes.kv_rank, sizes.rope_dim), dim=-1)
        made = self.kv_b_proj(self.kv_a_norm(latent)).unflatten(-1, (-1, sizes.nope_dim + sizes.v_dim))
        k_nope, v = made.split((sizes.nope_dim, sizes.v_dim), dim=-1)
        return k_nope, k_rope.unsqueeze(-2), v

    def _whole_keys(self, k_nope: Tensor, k_rope: Tensor) -> Tensor:
        """(B, heads, T, …): the turned part is one for all heads."""
        return torch.cat((k_nope, k_rope.expand(*k_nope.shape[:-1], -1)), dim=-1).transpose(1, 2)


LATENT_EPS = 1e-6  # of the norms between its projections, in all releases


def latent_scale(config: ModelConfig, sizes: LatentAttention) -> float:
    """1 / sqrt(head), times yarn's gain squared where the config weighs it (`mscale_all_dim`)."""
    scale = float((sizes.nope_dim + sizes.rope_dim) ** -0.5)
    scaling = config.rope_scaling
    if scaling is not None and scaling.mscale_all_dim:
        scale *= yarn_gain(scaling.factor, scaling.mscale_all_dim) ** 2
    return scale


def _qk_norm(config: ModelConfig, heads: int) -> nn.Module:
    if config.qk_norm == "each":
        return HeadNorm(heads, config)
    return make_norm(config, config.head_dim * (heads if config.qk_norm == "width" else 1), bias=False)


def _added(mask: Tensor | None, q: Tensor, k: Tensor, *, causal: bool) -> Tensor:
    """A mask as numbers to add, in the type of q."""
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        mask = mask.tril() if causal else mask
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -torch.inf)


def _with_sinks(k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One more key of zeros, which the mask gives the score of its head's sink, and its value of zeros."""
    heads = (*mask.shape[:-3], len(sinks), *mask.shape[-2:])
    score = sinks.to(mask.dtype)[:, None, None].expand(*heads[:-1], 1)
    return F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), torch.cat((mask.expand(heads), score), dim=-1)
