"""What an engine asks for the next tokens, and the plain way to compute them. Knows no text and no sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from launchyard.model.network.kv_cache import Cache
from launchyard.model.network.transformer import Transformer


class Decoding(Protocol):
    """Of one model, over one cache."""

    cache: Cache

    @property
    def words(self) -> str:
        """How steps are computed, for people; empty if there is nothing to say."""
        ...

    def step(self, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Puts a token behind the lengths[b] positions of each row b = 0, 1, … -> logits (B, vocab_size), fp32.

        Valid until the next step; the caller may change them.
        """
        ...


class EagerDecoding:
    """Each operation is started by Python."""

    def __init__(self, model: Transformer, cache: Cache, *, words: str = "") -> None:
        self.cache = cache
        self.words = words
        self._model = model

    def step(self, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
        self.cache.select(0, lengths)
        ids = torch.tensor(tokens, device=self.cache.device)[:, None]
        return self._model(ids, cache=self.cache)[:, 0, : self._model.config.vocab_size].float()
