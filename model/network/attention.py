"""Causal attention with grouped heads, rotary positions and an optional cache of keys and values."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

from launchyard.model.config import ModelConfig
from launchyard.model.network.kv_cache import BlockCache
from launchyard.model.network.linear import Linear
from launchyard.model.network.rope import rotate


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.grouped = config.n_kv_heads != config.n_heads
        heads = config.n_heads * config.head_dim
        kv = config.n_kv_heads * config.head_dim
        qkv_bias = config.attention_bias or config.qkv_bias
        self.q_proj = Linear(config.dim, heads, bias=qkv_bias)
        self.k_proj = Linear(config.dim, kv, bias=qkv_bias)
        self.v_proj = Linear(config.dim, kv, bias=qkv_bias)
        self.o_proj = Linear(heads, config.dim, bias=config.attention_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: BlockCache | None = None) -> Tensor:
        heads = (-1, self.head_dim)
        q = rotate(self.q_proj(x).unflatten(-1, heads), cos, sin).transpose(1, 2)  # (B, H, T, head_dim)
        k = rotate(self.k_proj(x).unflatten(-1, heads), cos, sin).transpose(1, 2)  # (B, H_kv, T, head_dim)
        v = self.v_proj(x).unflatten(-1, heads).transpose(1, 2)
        if cache is None:
            out = sdpa(q, k, v, is_causal=True, enable_gqa=self.grouped)
        else:
            out = self._with_cache(q, k, v, cache)
        return self.o_proj(out.transpose(1, 2).flatten(-2))

    def _with_cache(self, q: Tensor, k: Tensor, v: Tensor, cache: BlockCache) -> Tensor:
        first = cache.shared.start == 0
        all_k, all_v = cache.write(k, v)
        if first:  # nothing but these tokens: as in training
            return sdpa(q, k, v, is_causal=True, enable_gqa=self.grouped)
        mask = cache.shared.mask
        if self.grouped and q.shape[2] == 1:  # the heads of a group as queries of one head: no key is repeated
            out = sdpa(q.reshape(q.shape[0], k.shape[1], -1, self.head_dim), all_k, all_v, attn_mask=mask)
            return out.reshape(q.shape)
        return sdpa(q, all_k, all_v, attn_mask=mask, enable_gqa=self.grouped)
