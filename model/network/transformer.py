"""The one decoder-only transformer; families differ by their config alone. Knows no training, no files and no text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard.model.config import ModelConfig
from launchyard.model.network.attention import Attention
from launchyard.model.network.kv_cache import BlockCache, Cache
from launchyard.model.network.linear import Embedding, Linear
from launchyard.model.network.rope import tables

Head = Callable[[Tensor, Tensor], Tensor]


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gated = config.gated_mlp
        if config.gated_mlp:
            self.gate_proj = Linear(config.dim, config.ffn_dim, bias=config.mlp_bias)
        self.up_proj = Linear(config.dim, config.ffn_dim, bias=config.mlp_bias)
        self.down_proj = Linear(config.ffn_dim, config.dim, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            return self.down_proj(self._activate(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(self._activate(self.up_proj(x)))

    def _activate(self, x: Tensor) -> Tensor:
        if self.activation == "silu":
            return F.silu(x)
        return F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")


class Block(nn.Module):
    """(B, T, dim) in and out. Called with tensors only, so that it can be compiled, recomputed or sharded alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.parallel_residual = config.parallel_residual
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: BlockCache | None = None) -> Tensor:
        attended = self.attention(self.attention_norm(x), cos, sin, cache)
        if self.parallel_residual:
            return x + attended + self.mlp(self.mlp_norm(x))
        x = x + attended
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """Holds parameters only, no buffers: after `to_empty` nothing but weights is to be filled."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.padded_vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = make_norm(config)
        self.lm_head = Linear(config.dim, config.padded_vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed.weight
        self._tables: tuple[Tensor, Tensor] | None = None

    def forward(self, tokens: Tensor, *, head: Head | None = None, cache: Cache | None = None) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, padded_vocab_size), or the result of `head(hidden, lm_head.weight)`.

        `head` gets hidden (B, T, dim) and the weight (padded_vocab_size, dim) inside this forward, where a sharded
        weight is whole; so a loss need not have all logits in memory. With a cache the tokens follow those in it.
        ValueError if positions beyond max_seq_len are asked for: rotations that were never trained give noise.
        """
        n_new = tokens.shape[1]
        if cache is not None:
            cache.begin(n_new)
        cos, sin = self._positions(n_new, cache, tokens.device)
        x = self.embed(tokens)
        for number, block in enumerate(self.blocks):
            x = block(x, cos, sin, None if cache is None else cache.blocks[number])
        if cache is not None:
            cache.end(n_new)
        x = self.norm(x)
        return self.lm_head(x) if head is None else head(x, self.lm_head.weight)

    def _positions(self, n_new: int, cache: Cache | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the tokens' positions: (T, rope_dim / 2), with rows of unequal length (B, T, …)."""
        start = 0 if cache is None else cache.start
        stop = start + n_new
        if stop > self.config.max_seq_len:
            raise ValueError(f"{stop} positions are asked for; this model has max_seq_len {self.config.max_seq_len}")
        if self._tables is None or len(self._tables[0]) < stop or self._tables[0].device != device:
            self._tables = tables(self.config, min(self.config.max_seq_len, _grown(stop)), device)
        cos, sin = self._tables
        if cache is not None and not cache.even:
            return cos[cache.positions], sin[cache.positions]
        return cos[start:stop], sin[start:stop]


def make_norm(config: ModelConfig) -> nn.Module:
    """Both kinds compute in fp32 whatever the weights are."""
    kind = nn.LayerNorm if config.norm == "layernorm" else nn.RMSNorm
    return kind(config.dim, eps=config.norm_eps)


def _grown(length: int) -> int:
    """The next power of two, so that generation does not make tables anew at each token."""
    return 1 << max(0, length - 1).bit_length()
