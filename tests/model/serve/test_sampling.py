"""Drawing: what is drawn has the right odds, and penalties are those of their rules."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.model.serve.sampling import Sampling, change_logits, draw_tokens

LOGITS = torch.tensor([[1.0, 3.0, 0.5, -2.0, 2.0, 3.0, 0.0, -torch.inf]])


def expected(sampling: Sampling) -> list[float]:
    """Odds by the definition, one token after the other."""
    k = min(sampling.top_k or 8, 8)
    order = sorted(range(8), key=lambda n: (-LOGITS[0, n].item(), n))[:k]
    mass = [math.exp(LOGITS[0, n].item() / sampling.temperature) for n in order]
    mass = [each / sum(mass) for each in mass]
    kept, total = 0, 0.0
    least = (sampling.min_p or 0) * mass[0]
    while kept < k and (sampling.top_p is None or total < sampling.top_p) and mass[kept] >= least:
        total += mass[kept]
        kept += 1
    odds = [0.0] * 8
    for n, each in zip(order[:kept], mass, strict=False):
        odds[n] = each / total
    return odds


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(0.5), Sampling(2.0), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.8), Sampling(1.5, 5, 0.9),
     Sampling(1.0, top_k=100), Sampling(1.0, top_p=1.0), Sampling(1.0, min_p=0.3), Sampling(2.0, min_p=0.3),
     Sampling(1.0, 4, 0.9, 0.1), Sampling(0.7, min_p=1.0)],
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
    assert {draw_tokens(LOGITS, Sampling(5.0, top_k=1), [number / 64])[0] for number in range(64)} == {1}
    even = torch.zeros(1, 4)  # of four tokens with 1/4 each, two reach 1/2: a third is not needed
    assert len({draw_tokens(even, Sampling(1.0, top_p=0.5), [number / 64])[0] for number in range(64)}) == 2


# -- a vocabulary of which not all is sorted -------------------------------------------------------------------------
LARGE = 1500


def large_logits() -> torch.Tensor:
    """Falling slowly, in no order."""
    order = torch.randperm(LARGE, generator=torch.Generator().manual_seed(0))
    return torch.linspace(0, -1.5, LARGE)[order]


def kept_by_definition(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Odds of all tokens, (V,)."""
    odds = (logits.double() / sampling.temperature).softmax(-1)
    values, ids = odds.sort(descending=True)
    keep = torch.ones(LARGE, dtype=torch.bool)
    if sampling.top_p is not None:
        keep &= values.cumsum(-1) - values < sampling.top_p
    if sampling.min_p is not None:
        keep &= values >= sampling.min_p * values[0]
    kept = torch.zeros_like(odds)
    kept[ids[keep]] = values[keep]
    return kept / kept.sum()


@pytest.mark.parametrize(
    ("sampling", "sorts_all"),
    [
        (Sampling(min_p=0.3), True),
        (Sampling(0.5, min_p=0.3), False),
        (Sampling(top_p=0.9), True),
        (Sampling(0.2, top_p=0.9), False),
        (Sampling(top_p=0.95, min_p=0.3), True),
        (Sampling(top_p=0.2, min_p=0.3), False),
        (Sampling(), True),
    ],
    ids=lambda value: f"{value.temperature}-{value.top_p}-{value.min_p}" if isinstance(value, Sampling) else "",
)
def test_draws_of_a_large_vocabulary_have_the_right_odds(sampling: Sampling, sorts_all: bool) -> None:
    """Chi-square over 20 groups of tokens of falling odds."""
    logits, n = large_logits(), 6000
    odds = kept_by_definition(logits, sampling)
    n_kept = int((odds > 0).sum())
    assert (n_kept > 1024) == sorts_all
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()
    parts = [uniform[first : first + 1000] for first in range(0, n, 1000)]
    drawn = torch.tensor([token for part in parts for token in draw_tokens(logits.expand(1000, LARGE), sampling, part)])
    counts = torch.bincount(drawn, minlength=LARGE)
    assert not counts[odds == 0].any()
    groups = odds.argsort(descending=True)[:n_kept].tensor_split(20)
    pairs = [(counts[group].sum().item(), n * odds[group].sum().item()) for group in groups]
    assert sum((count - share) ** 2 / share for count, share in pairs) < 64, "passed by chance once in a million"
    assert int((counts > 0).sum()) > 0.85 * n_kept


@pytest.mark.parametrize("sampling", [Sampling(0.6, top_p=0.95), Sampling(1.0, min_p=0.3)], ids=str)
def test_a_row_is_drawn_as_without_its_neighbours(sampling: Sampling) -> None:
    """Among equal logits, too, and beside a row of which more is to be sorted."""
    flat = large_logits()
    peaked = torch.round(flat * 4) - 8
    peaked[:600] = 1.0
    rows = torch.stack((flat, peaked, flat))
    for number in range(40):
        uniform = [number / 40] * 3
        alone = [draw_tokens(row[None], sampling, [number / 40])[0] for row in rows]
        assert draw_tokens(rows, sampling, uniform) == alone


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-6])
def test_a_temperature_near_0_takes_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[3.0, 60.0, -70.0, 59.0, -torch.inf]])
    for cut in ({}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}):
        assert draw_tokens(logits, Sampling(temperature, **cut), [0.999]) == [1]


# -- penalties -------------------------------------------------------------------------------------------------------
BEFORE = [2.0, -1.0, 0.5, 4.0, -3.0, 0.0]


def changed(prompt: list[int], new: list[int], **options: object) -> list[float]:
    logits = torch.tensor(BEFORE)
    sampling = Sampling(**options)  # type: ignore[arg-type]
    assert sampling.changes_logits
    change_logits(logits, sampling, prompt, new)
    return logits.tolist()


@pytest.mark.parametrize(
    ("prompt", "new", "options", "after"),
    [
        # logit / p of those above 0, logit * p of the others, of all tokens seen, once
        ([0, 0, 1], [3], {"repetition_penalty": 2.0}, [1.0, -2.0, 0.5, 2.0, -3.0, 0.0]),
        # logit - p * |logit|
        ([0, 1, 1], [4], {"repeat_penalty": 0.25}, [1.5, -1.25, 0.5, 4.0, -3.75, 0.0]),
        # ... of the last tokens only: of the text, of its end and that of the prompt
        ([0, 1], [4], {"repeat_penalty": 0.25, "penalty_window": 1}, [2.0, -1.0, 0.5, 4.0, -3.75, 0.0]),
        ([0, 1], [4], {"repeat_penalty": 0.25, "penalty_window": 2}, [2.0, -1.25, 0.5, 4.0, -3.75, 0.0]),
        ([0, 1], [4], {"repeat_penalty": 0.25, "penalty_window": 99}, [1.5, -1.25, 0.5, 4.0, -3.75, 0.0]),
        ([0, 1], [3, 4], {"repeat_penalty": 0.5, "penalty_window": 1}, [2.0, -1.0, 0.5, 4.0, -4.5, 0.0]),
        ([0, 1], [], {"repetition_penalty": 2.0, "penalty_window": 1}, [2.0, -2.0, 0.5, 4.0, -3.0, 0.0]),
        # both: first the one, then the other
        ([0], [1], {"repetition_penalty": 2.0, "repeat_penalty": 0.5}, [0.5, -3.0, 0.5, 4.0, -3.0, 0.0]),
        # the new text only: once, and as often as it is there
        ([0, 1], [3, 4, 3], {"presence_penalty": 0.5}, [2.0, -1.0, 0.5, 3.5, -3.5, 0.0]),
        ([0, 1], [3, 4, 3], {"frequency_penalty": 0.5}, [2.0, -1.0, 0.5, 3.0, -3.5, 0.0]),
        ([0, 1], [3, 4, 3], {"presence_penalty": -1.0, "frequency_penalty": 0.25}, [2.0, -1.0, 0.5, 4.5, -2.25, 0.0]),
        ([0, 1], [3, 4, 3], {"frequency_penalty": 0.5, "penalty_window": 2}, [2.0, -1.0, 0.5, 3.5, -3.5, 0.0]),
        ([0, 1], [], {"presence_penalty": 0.5, "frequency_penalty": 0.5}, BEFORE),
        ([0], [], {"logit_bias": {2: 1.5, 3: -100.0}}, [2.0, -1.0, 2.0, -96.0, -3.0, 0.0]),
        ([0], [], {"logit_bias": {0: 2.0}, "repetition_penalty": 4.0}, [1.0, -1.0, 0.5, 4.0, -3.0, 0.0]),
        # a prompt may hold an id of padding, which has no logit
        ([9, 0], [], {"repetition_penalty": 2.0}, [1.0, -1.0, 0.5, 4.0, -3.0, 0.0]),
    ],
    ids=str,
)  # fmt: skip
def test_penalties_by_hand(prompt: list[int], new: list[int], options: dict[str, object], after: list[float]) -> None:
    assert changed(prompt, new, **options) == pytest.approx(after)


def test_a_banned_token_is_never_drawn() -> None:
    logits = torch.tensor(BEFORE)
    change_logits(logits, Sampling(logit_bias={3: -math.inf}), [0], [])
    numbers = [number / 200 for number in range(200)]
    for cut in ({}, {"top_k": 6}, {"top_p": 0.999}, {"min_p": 1e-9}):
        assert set(draw_tokens(logits.expand(200, 6), Sampling(3.0, **cut), numbers)) == {0, 1, 2, 4, 5}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"min_p": 0.0}, "min_p is 0.0"),
        ({"min_p": math.nan}, "min_p is nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repeat_penalty": math.nan}, "repeat_penalty is nan"),
        ({"presence_penalty": math.inf}, "presence_penalty is inf"),
        ({"penalty_window": 0}, "penalty_window is 0"),
        ({"logit_bias": {1: math.nan}}, "logit_bias of token 1 is nan"),
    ],
)
def test_rules_that_make_no_sense_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sampling(**options)  # type: ignore[arg-type]
