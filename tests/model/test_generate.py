"""Generation: the cache changes nothing, neighbours change nothing, and what is drawn has the right odds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.model.config import ModelConfig
from launchyard.model.generate import Sampling, draw_tokens, generate, generate_batch
from launchyard.model.network import linear
from launchyard.model.network.kv_cache import Cache
from launchyard.model.network.transformer import Transformer
from tests.support.tiny_models import CONFIGS, llama, neox, random_model, random_tokens

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [3], [90, 80, 70, 60], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]]


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


@pytest.mark.parametrize("positions", ["none", "alibi"])
@torch.no_grad()
def test_what_has_no_numbers_of_positions_writes_on_past_max_seq_len(positions: str) -> None:
    config = llama(positions=positions, max_seq_len=16)
    model = random_model(config)
    prompt = random_tokens(config, 1, 20)[0].tolist()
    new = list(generate(model, prompt, max_new_tokens=12, temperature=0.0))
    assert len(new) == 12
    whole = model(torch.tensor([prompt + new]))[0, len(prompt) - 1 : -1, : config.vocab_size]
    assert whole.argmax(-1).tolist() == new
    rotated = random_model(llama(max_seq_len=16))
    with pytest.raises(ValueError, match="the prompt has 20 tokens; this model has max_seq_len 16"):
        generate(rotated, prompt, max_new_tokens=1)
    assert len(list(generate(rotated, prompt[:10], max_new_tokens=12, temperature=0.0))) == 6


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


# -- generation ------------------------------------------------------------------------------------------------------
def by_hand(model: Transformer, prompt: list[int], n: int) -> list[int]:
    """Greedy, the whole text through the model for each token."""
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1, : model.config.vocab_size].argmax()))
    return ids[len(prompt) :]


@each_config
def test_greedy_is_the_likeliest_token_each_time(config: ModelConfig) -> None:
    model = random_model(config)
    found = list(generate(model, PROMPTS[0], max_new_tokens=20, temperature=0))
    assert (
        found == by_hand(model, PROMPTS[0], 20) == list(generate(model, PROMPTS[0], max_new_tokens=20, temperature=0))
    )


def rows_of(steps: Any, n: int) -> list[list[int]]:
    table = list(steps)
    return [[step[row] for step in table if step[row] is not None] for row in range(n)]


@each_config
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_of_unequal_prompts_is_each_of_them_alone(config: ModelConfig, temperature: float) -> None:
    """With rows that end early at a stop token, so that the batch shrinks on the way."""
    model, prompts = random_model(config), [[token % config.vocab_size for token in prompt] for prompt in PROMPTS]
    options: dict[str, Any] = {"max_new_tokens": 25, "temperature": temperature, "top_k": 20, "stop_ids": range(12)}
    alone = [list(generate(model, prompt, seed=40 + n, **options)) for n, prompt in enumerate(prompts)]
    assert rows_of(generate_batch(model, prompts, seed=40, **options), 4) == alone
    if temperature:
        assert len({len(ids) for ids in alone}) > 1, "no row ended early; choose other stop tokens"


def test_seeds_decide_and_nothing_else_does() -> None:
    model = random_model(neox())

    def write(seed: int | None) -> list[int]:
        return list(generate(model, [1, 2], max_new_tokens=20, seed=seed))

    torch.manual_seed(0)
    first, state = write(7), torch.get_rng_state()
    torch.manual_seed(1)
    assert write(7) == first != write(8)
    assert write(None) != write(None)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


def test_a_stop_token_ends_the_text_and_is_no_part_of_it() -> None:
    model = random_model(llama())
    free = list(generate(model, [1, 2], max_new_tokens=20, temperature=0))
    stop = free[5]
    assert list(generate(model, [1, 2], max_new_tokens=20, temperature=0, stop_ids=[stop])) == free[: free.index(stop)]


def test_a_text_ends_where_the_context_is_full() -> None:
    model = random_model(neox())
    prompts = [list(range(60)), list(range(10)), list(range(64))]
    rows = rows_of(generate_batch(model, prompts, max_new_tokens=30, temperature=0), 3)
    assert [len(row) for row in rows] == [4, 30, 0]
    assert rows[1] == by_hand(model, prompts[1], 30)


def test_tokens_come_while_they_are_made() -> None:
    model = random_model(neox())
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    tokens = generate(model, [1, 2], max_new_tokens=20, temperature=0)
    assert not calls
    next(tokens)
    next(tokens)
    assert len(calls) == 2


def test_padding_of_the_vocabulary_is_never_drawn() -> None:
    model = random_model(neox(vocab_size=4), seed=3)  # 131 rows, 4 of them real
    ids = list(generate(model, [1, 2], max_new_tokens=60, temperature=5.0, seed=0))
    assert set(ids) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ([], {}, "the prompt is empty"),
        (list(range(65)), {}, "the prompt has 65 tokens; this model has max_seq_len 64"),
        ([1, 131], {}, "token 131 is not in the model's vocabulary of 131"),
        ([-1, 5], {}, "token -1 is not in"),
        ([1], {"temperature": -0.1}, "temperature is -0.1"),
        ([1], {"top_k": 0}, "top_k is 0"),
        ([1], {"top_p": 0.0}, "top_p is 0.0"),
        ([1], {"top_p": 1.5}, "top_p is 1.5"),
        ([1], {"max_new_tokens": -1}, "max_new_tokens is -1"),
    ],
)
def test_what_cannot_be_written_is_said_at_once(prompt: list[int], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        generate(random_model(neox()), prompt, **{"max_new_tokens": 3, **options})


# -- drawing ---------------------------------------------------------------------------------------------------------
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


def test_what_lay_in_memory_before_does_not_reach_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a shorter row positions are read before they are written; they are masked, but a NaN would come through."""
    real = torch.empty

    def dirty(*size: Any, **options: Any) -> torch.Tensor:
        made = real(*size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    model, prompts = random_model(neox()), [[1, 2, 3, 4, 5, 6], [7], [8, 9]]
    alone = [list(generate(model, prompt, max_new_tokens=12, temperature=0)) for prompt in prompts]
    monkeypatch.setattr(torch, "empty", dirty)
    assert rows_of(generate_batch(model, prompts, max_new_tokens=12, temperature=0), 3) == alone
