"""First weights do not depend on who makes them, and have the spread they should have."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import launchyard.model.network.init as init_module
from launchyard.model.layout import parameter_shapes
from launchyard.model.network.init import initial_rows
from tests.support.tiny_models import llama, neox

CONFIG = neox(dim=96, n_heads=6, ffn_dim=384, vocab_size=1000, padded_vocab_size=1024)
SHAPES = parameter_shapes(CONFIG)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(SHAPES)), st.data())
def test_cuts_change_nothing(key: str, data: st.DataObject) -> None:
    shape = SHAPES[key]
    whole = initial_rows(CONFIG, key, shape, seed=5)
    cuts = sorted(data.draw(st.lists(st.integers(0, shape[0]), max_size=4)))
    edges = [0, *cuts, shape[0]]
    pieces = [
        initial_rows(CONFIG, key, shape, seed=5, start=start, stop=stop) for start, stop in itertools.pairwise(edges)
    ]
    assert torch.equal(torch.cat(pieces), whole)


def test_cuts_across_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_module, "BLOCK_ELEMENTS", 96 * 7)  # 1024 rows are no multiple of it
    shape = SHAPES["embed.weight"]
    whole = initial_rows(CONFIG, "embed.weight", shape, seed=5)
    for start, stop in ((0, 7), (6, 8), (13, 500), (1000, 1024), (1023, 1024), (7, 7)):
        part = initial_rows(CONFIG, "embed.weight", shape, seed=5, start=start, stop=stop)
        assert torch.equal(part, whole[start:stop])


def test_names_and_seeds_give_other_numbers() -> None:
    keys = ["blocks.0.attention.q_proj.weight", "blocks.0.attention.k_proj.weight", "blocks.1.attention.q_proj.weight"]
    made = [initial_rows(CONFIG, key, SHAPES[key], seed=seed) for key in keys for seed in (0, 1)]
    for n, one in enumerate(made):
        for other in made[:n]:
            assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.05


def test_the_numbers_themselves_are_fixed() -> None:
    """A change here makes runs that were started before another run."""
    first = initial_rows(CONFIG, "embed.weight", SHAPES["embed.weight"], seed=0, stop=1)[0, :4]
    torch.testing.assert_close(
        first, torch.tensor([3.0565836e-02, 3.6294858e-03, -1.1741882e-03, 3.5207190e-02]), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("config", [CONFIG, llama(dim=96, n_heads=6, ffn_dim=384)], ids=["neox", "llama"])
def test_the_spread(config: object) -> None:
    for key, shape in parameter_shapes(config).items():
        value = initial_rows(config, key, shape, seed=1)
        assert value.shape == shape
        assert value.dtype == torch.float32
        if len(shape) == 1:
            assert torch.equal(value, torch.zeros(shape) if key.endswith("bias") else torch.ones(shape))
        else:
            expected = 0.02 / math.sqrt(6) if "o_proj" in key or "down_proj" in key else 0.02
            error = 5 / math.sqrt(2 * value.numel())
            assert abs(value.std().item() / expected - 1) < error
            assert abs(value.mean().item()) < 5 * expected / math.sqrt(value.numel())


@pytest.mark.parametrize("key", ["blocks.3.mlp.up_proj.weight", "lm_head.bias", "embed"])
def test_an_unknown_name_is_an_error(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        initial_rows(CONFIG, key, (384, 96), seed=0)
