"""Rows of a table and of a head that train alone: what is added to the rows of some tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard.model.network.linear import Embedding, Linear


class TokenRows(nn.Module):
    """tokens (n, dim): added to the rows of `ids`, in their order."""

    tokens: nn.Parameter
    ids: tuple[int, ...]
    off = False  # see without_updates of model/adapt/lora.py

    def numbers(self, device: torch.device) -> Tensor:
        return torch.tensor(self.ids, device=device)


class TokenEmbedding(TokenRows, Embedding):
    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        if self.off:
            return out
        chosen = input[..., None] == self.numbers(input.device)  # (…, n)
        return out + chosen.to(out.dtype) @ self.tokens.to(out.dtype)


class TokenHead(TokenRows, Linear):
    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        if self.off:
            return out
        more = F.linear(input, self.tokens.to(input.dtype))
        return out.index_add(-1, self.numbers(input.device), more)

    def whole_weight(self) -> Tensor:
        if self.off:
            return self.weight
        ids = self.numbers(self.weight.device)
        return self.weight.index_add(0, ids, self.tokens.to(self.weight.dtype))


def add_tokens(embed: nn.Module, head: nn.Module, ids: tuple[int, ...], *, tied: bool) -> None:
    """Give a table and a head rows of tokens, unfilled, on the default device; a tied head has those of the table."""
    embed.__class__ = TokenEmbedding
    head.__class__ = TokenHead
    assert isinstance(embed, TokenEmbedding)
    assert isinstance(head, TokenHead)
    embed.ids = head.ids = ids
    embed.tokens = nn.Parameter(torch.empty(len(ids), embed.embedding_dim))
    head.tokens = embed.tokens if tied else nn.Parameter(torch.empty(len(ids), embed.embedding_dim))


def tie_head(embed: nn.Module, head: nn.Module) -> None:
    """Make a head's parameters those of its table."""
    head.weight = embed.weight
    if isinstance(embed, TokenEmbedding):
        head.tokens = embed.tokens
