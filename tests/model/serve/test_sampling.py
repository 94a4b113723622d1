"""Drawing: what is drawn has the right odds, and penalties are those of their rules."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.model.serve.sampling import Sampling, draw_tokens

LOGITS = torch.tensor([[1.0, 3.0, 0.5, -2.0, 2.0, 3.0, 0.0, -torch.inf]])


def expected(sampling: Sampling) -> list[float]:
    """Odds by the definition, one token after the other."""
    k = min(sampling.top_k or 8, 8)
    order = sorted(range(8), key=lambda n: (-LOGITS[0, n].item(), n))[:k]
    mass = [math.exp(LOGITS[0, n].item() / sampling.temperature) for n in order]
    mass = [each / sum(mass) for each in mass]
    kept, total = 0, 0.0
    while kept < k and (sampling.top_p is None or total < sampling.top_p):
        total += mass[kept]
        kept += 1
    odds = [0.0] * 8
    for n, each in zip(order[:kept], mass, strict=False):
        odds[n] = each / total
    return odds


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(0.5), Sampling(2.0), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.8), Sampling(1.5, 5, 0.9),
     Sampling(1.0, top_k=100), Sampling(1.0, top_p=1.0)],
    ids=str,
)  # fmt: skip
def test_draws_have_the_right_odds(sampling: Sampling) -> None:
    """Chi-square over 20,000 draws; the limit is passed by chance once in a million."""
    n, odds = 20_000, expected(sampling)
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    counts = torch.bincount(torch.tensor(draw_tokens(LOGITS.expand(n, 8), sampling, uniform)), minlength=8).tolist()
    assert all(count == 0 for count, share in zip(counts, odds, strict=True) if share == 0)
    chi = sum((count - n * share) ** 2 / (n * share) for count, share in zip(counts, odds, strict=True) if share)
    assert chi < 40
    assert sum(share > 0 for share in odds) > 1


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=20),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.01, 5),
    st.one_of(st.none(), st.integers(1, 25)),
    st.one_of(st.none(), st.floats(0.01, 1)),
)
def test_a_draw_is_always_one_of_the_kept_tokens(
    logits: list[float], uniform: float, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    (token,) = draw_tokens(torch.tensor([logits]), Sampling(temperature, top_k, top_p), [uniform])
    better = sum(each > torch.tensor(logits)[token].item() for each in torch.tensor(logits).tolist())
    assert better < (top_k or len(logits))


def test_the_edges_of_the_draw() -> None:
    almost_one = math.nextafter(1.0, 0.0)
    assert draw_tokens(LOGITS, Sampling(), [0.0]) == [0]
    assert draw_tokens(LOGITS, Sampling(), [almost_one]) == [6], "a token without any odds was drawn"
    assert draw_tokens(LOGITS, Sampling(temperature=0), [0.5]) == [1]
    assert draw_tokens(LOGITS, Sampling(1.0, top_p=1e-9), [almost_one]) == [1]
    even = torch.zeros(1, 4)  # of four tokens with 1/4 each, two reach 1/2: a third is not needed
    assert len({draw_tokens(even, Sampling(1.0, top_p=0.5), [number / 64])[0] for number in range(64)}) == 2
