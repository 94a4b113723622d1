"""The transformer of one rank: a narrower one, whose projections back to the stream are summed over the ranks.

Streams, and so norms, caches and routers, are the same on all. Knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard.model.config import ModelConfig, MoE
from launchyard.model.network.documents import Documents
from launchyard.model.network.linear import Embedding, Linear
from launchyard.model.network.mlp import MLP, MixtureOfExperts
from launchyard.model.network.transformer import Block, Projection, Transformer
from launchyard.model.parallel.ranks import Ranks
from launchyard.model.parallel.share import share_config, shares_vocabulary


class RankTransformer(Transformer):
    """Takes and gives what the whole model does, if all ranks run it on the same tokens.

    Any text is written by the same engine on each: they agree on what rank 0 draws, so that rounding cannot part them.
    """

    def __init__(self, config: ModelConfig, ranks: Ranks) -> None:
        super().__init__(share_config(config, ranks.rank, ranks.count))
        self.ranks = ranks
        for block in self.blocks:
            assert isinstance(block, Block)
            _let_sum(block, self.config, ranks)
        if shares_vocabulary(config, ranks.count):
            rows = config.padded_vocab_size // ranks.count
            self.embed = _SharedTable(rows, config.embed_dim, ranks)
            self.lm_head = _SharedHead(config.embed_dim, rows, bias=config.head_bias, ranks=ranks)

    def projection(self) -> Projection:
        whole = super().projection()
        if not isinstance(self.lm_head, _SharedHead):
            return whole
        return _SharedProjection(whole.weight, whole.bias, whole.softcap, ranks=self.ranks)

    def agreed(self, numbers: list[int], *, at_most: int) -> list[int]:
        return self.ranks.agreed(numbers, at_most=at_most)


def _let_sum(block: Block, config: ModelConfig, ranks: Ranks) -> None:
    attention = block.attention
    attention.o_proj = _summing(attention.o_proj, ranks)
    if config.qk_norm == "width":
        attention.q_norm = _SharedNorm(config.n_heads * config.head_dim, config.norm_eps, ranks)
        attention.k_norm = _SharedNorm(config.n_kv_heads * config.head_dim, config.norm_eps, ranks)
    mlp = block.mlp
    if isinstance(mlp, MLP):
        mlp.down_proj = _summing(mlp.down_proj, ranks)
        return
    block.mlp = _SharedMixture(config, mlp.moe, ranks)


def _summing(plain: Linear, ranks: Ranks) -> Linear:
    """Only the first rank has the bias."""
    bias = plain.bias is not None and ranks.is_first
    return _SummedLinear(plain.in_features, plain.out_features, bias=bias, ranks=ranks)


class _SummedLinear(Linear):
    """Some columns of a matrix, for some elements of the input."""

    def __init__(self, inner: int, outer: int, *, bias: bool, ranks: Ranks) -> None:
        super().__init__(inner, outer, bias=bias)
        self.ranks = ranks

    def forward(self, input: Tensor) -> Tensor:
        return self.ranks.summed(super().forward(input))


class _SharedNorm(nn.Module):
    """RMSNorm of all heads together, of which some are here."""

    def __init__(self, width: int, eps: float, ranks: Ranks) -> None:
        super().__init__()
        self.eps = eps
        self.ranks = ranks
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        squares = self.ranks.summed(wide.square().mean(-1, keepdim=True)) / self.ranks.count
        return (wide * torch.rsqrt(squares + self.eps) * self.weight.float()).to(x.dtype)


class _SharedMixture(MixtureOfExperts):
    """A part of the width of every expert, the one that all tokens go through among them."""

    def __init__(self, config: ModelConfig, moe: MoE, ranks: Ranks) -> None:
        super().__init__(config, moe)
        self.ranks = ranks
        if not ranks.is_first:
            self.experts.down_proj.bias = None

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        return self.ranks.summed(super().forward(x, documents))


class _SharedTable(Embedding):
    """Some rows of a table, in order; an id of another rank's is zeros here, so that the sum is its row."""

    def __init__(self, rows: int, width: int, ranks: Ranks) -> None:
        super().__init__(rows, width)
        self.ranks = ranks

    def forward(self, input: Tensor) -> Tensor:
        places = input - self.ranks.rank * self.num_embeddings
        is_elsewhere = (places < 0) | (places >= self.num_embeddings)
        found = F.embedding(places.masked_fill(is_elsewhere, 0), self.weight)
        return self.ranks.summed(found.masked_fill(is_elsewhere[..., None], 0))


class _SharedHead(Linear):
    """Some rows of the head, in order."""

    def __init__(self, width: int, rows: int, *, bias: bool, ranks: Ranks) -> None:
        super().__init__(width, rows, bias=bias)
        self.ranks = ranks

    def forward(self, input: Tensor) -> Tensor:
        return self.ranks.gathered(super().forward(input))


@dataclass(frozen=True)
class _SharedProjection(Projection):
    """weight and bias: some rows; logits: of all."""

    ranks: Ranks | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        assert self.ranks is not None
        return self.ranks.gathered(super().__call__(hidden))
