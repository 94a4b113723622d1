"""The cache of keys and values changes no logits."""

from __future__ import annotations

import pytest
import torch

from launchyard.model.config import ModelConfig
from launchyard.model.network import linear
from launchyard.model.network.kv_cache import Cache
from tests.support.tiny_models import CONFIGS, neox, random_model, random_tokens

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def new_cache(config: ModelConfig, *, batch_size: int, length: int = 64) -> Cache:
    return Cache(config, batch_size=batch_size, length=length, dtype=torch.float32, device=torch.device("cpu"))


# -- the cache -------------------------------------------------------------------------------------------------------
@each_config
@torch.no_grad()
def test_cached_logits_are_those_without_a_cache(config: ModelConfig) -> None:
    """However the tokens are cut into pieces: prefill, several at once behind others, one by one."""
    model, tokens = random_model(config), random_tokens(config, 2, 30)
    whole = model(tokens)
    cache, pieces = new_cache(config, batch_size=2, length=30), tokens.split([7, 1, 1, 5, 1, 9, 6], dim=1)
    cached = torch.cat([model(piece, cache=cache) for piece in pieces], dim=1)
    torch.testing.assert_close(cached, whole, atol=2e-5, rtol=1e-5)


@each_config
@torch.no_grad()
def test_rows_of_unequal_length_have_the_logits_they_have_alone(config: ModelConfig) -> None:
    model, lengths = random_model(config), [9, 1, 4, 15]
    tokens = random_tokens(config, 4, 30)
    cache = new_cache(config, batch_size=4, length=30)
    cache.expect(lengths)
    model(tokens[:, : max(lengths)], cache=cache)  # padded on the right with tokens that mean something
    for step in range(6):
        new = torch.stack([tokens[row, length + step] for row, length in enumerate(lengths)])[:, None]
        together = model(new, cache=cache)
        for row, length in enumerate(lengths):
            alone = model(tokens[row : row + 1, : length + step + 1])
            torch.testing.assert_close(together[row, -1], alone[0, -1], atol=2e-5, rtol=1e-5)


def test_a_full_cache_is_an_error() -> None:
    cache = new_cache(neox(), batch_size=1, length=8)
    with pytest.raises(ValueError, match="the cache holds 8 positions; 0 are taken, 9 do not fit"):
        random_model(neox())(random_tokens(neox(), 1, 9), cache=cache)


@torch.no_grad()
def test_the_fast_product_is_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel for one token, taken for large matrices, is forced upon small ones."""
    model, tokens = random_model(neox()), random_tokens(neox(), 3, 1)
    plain = model(tokens)
    monkeypatch.setattr(linear, "LARGE", 1)
    assert model.lm_head._streams(torch.ones(1, 1, 48)), "this build of torch has no oneDNN"
    torch.testing.assert_close(model(tokens), plain, atol=1e-5, rtol=1e-5)
