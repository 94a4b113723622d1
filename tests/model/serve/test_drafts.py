"""Guessed tokens: whatever is guessed, the text is the one without guesses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.drafts import DraftModel, PromptLookup
from launchyard.model.serve.engine import Engine
from launchyard.model.serve.generate import generate_all
from launchyard.model.serve.requests import Drafter, Generation, Request
from launchyard.model.serve.sampling import Sampling
from tests.support.tiny_models import llama, neox, random_model

PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 6], [3], [90, 80, 70, 60], list(range(1, 40))]
GREEDY = Sampling(temperature=0)
DRAWN = Sampling(0.8, top_k=30, top_p=0.95)
PENALIZED = Sampling(0.9, min_p=0.01, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2)
each_rule = pytest.mark.parametrize("sampling", [GREEDY, DRAWN, PENALIZED], ids=["greedy", "drawn", "penalized"])


class Stubborn:
    """Always guesses the same tokens, more than it was asked for."""

    def guess(self, context: Sequence[int], text: Generation, uniform: Sequence[float]) -> list[int]:
        return [7] * (len(uniform) + 3)


def request(prompt: list[int], drafter: Drafter | None = None, **options: Any) -> Request:
    return Request(**{"prompt": prompt, "max_new_tokens": 24, "seed": 3, **options}, drafter=drafter)


def both(model: Transformer, requests: Sequence[Request], **options: Any) -> list[Generation]:
    """The texts, after a look that they are the same without guesses, one by one."""
    engine = Engine(model, **{"n_slots": len(requests), "rewindable": True, **options})
    texts = [engine.add(each) for each in requests]
    while not engine.is_idle:
        engine.step()
    for text in texts:
        alone = Engine(model, n_slots=1, length=engine.length)
        plain = alone.add(Request(**{**vars(text.request), "drafter": None}))
        while not alone.is_idle:
            alone.step()
        assert (text.new, text.ended, text.odds) == (plain.new, plain.ended, plain.odds)
    return texts


@each_rule
def test_the_same_model_guesses_all_tokens_right(sampling: Sampling) -> None:
    model = random_model(llama())
    drafter = DraftModel(random_model(llama()), model)
    for prompt in PROMPTS:
        (text,) = both(model, [request(prompt, drafter, sampling=sampling)])
        assert text.n_guessed == text.n_guessed_right > 12


@each_rule
def test_another_model_guesses_few_tokens_right(sampling: Sampling) -> None:
    model = random_model(llama())
    drafter = DraftModel(random_model(neox(n_layers=1, dim=32), seed=5), model)
    texts = [both(model, [request(prompt, drafter, sampling=sampling)])[0] for prompt in PROMPTS]
    guessed = sum(text.n_guessed for text in texts)
    right = sum(text.n_guessed_right for text in texts)
    assert right < guessed / 2


def test_a_model_that_is_nearly_the_same_saves_steps() -> None:
    """Some guesses are right and some wrong: the cache of both goes back and forth."""
    model = random_model(llama())
    nearly = random_model(llama())
    with torch.no_grad():
        for parameter in nearly.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.003)
    (text,) = both(model, [request([5, 6], DraftModel(nearly, model), sampling=DRAWN, max_new_tokens=50)])
    assert 0.1 < text.n_guessed_right / text.n_guessed < 0.95


def test_a_text_that_repeats_itself_is_looked_up() -> None:
    model = random_model(llama(max_seq_len=128))
    (text,) = both(model, [request([1, 2, 3], PromptLookup(), sampling=GREEDY, max_new_tokens=100)])
    assert text.n_guessed_right > 40, "greedy texts of a tiny model run in circles; choose another seed"


@pytest.mark.parametrize(
    ("context", "options", "guessed"),
    [
        ([1, 2, 3, 4, 9, 1, 2, 3], {}, [4, 9, 1, 2]),
        ([2, 3, 5, 1, 2, 3, 6, 2, 3], {}, [6, 2, 3, 6]),  # the latest of equal ones, in its period
        ([1, 2, 3, 5, 9, 3, 6, 1, 2, 3], {}, [5, 9, 3, 6]),  # the longest before the latest
        ([4, 4], {}, [4, 4, 4, 4]),
        ([8, 3, 8], {"shortest": 2}, []),
        ([1, 2, 3], {}, []),
        ([1], {}, []),
    ],
)
def test_what_a_lookup_finds(context: list[int], options: dict[str, int], guessed: list[int]) -> None:
    assert PromptLookup(**options).guess(context, Generation(request([1])), [0.5] * 4) == guessed


@pytest.mark.parametrize("n_slots", [6, 2])
@each_rule
def test_texts_with_different_drafters_are_written_together(n_slots: int, sampling: Sampling) -> None:
    """Up to the end of the context, where a text without guesses stands beside one with many."""
    model = random_model(llama())  # of 64 positions
    shared = DraftModel(random_model(neox(), seed=2), model)
    drafters: list[Drafter | None] = [
        DraftModel(random_model(llama()), model), None, PromptLookup(), shared, shared, Stubborn()
    ]  # fmt: skip
    prompts = [*PROMPTS, [9, 9, 9], list(range(2, 60))]
    requests = [
        request(prompt, drafter, sampling=sampling, seed=n, max_new_tokens=90, n_guesses=1 + n, n_alternatives=None)
        for n, (prompt, drafter) in enumerate(zip(prompts, drafters, strict=True))
    ]
    texts = both(model, requests, n_slots=n_slots)
    assert {text.ended for text in texts} == {"context"}


@each_rule
def test_a_guess_goes_past_no_end(sampling: Sampling) -> None:
    model = random_model(llama())
    drafter = DraftModel(random_model(llama()), model)
    free = both(model, [request([5, 6], sampling=sampling)])[0].new
    for length in range(1, 8):
        (text,) = both(model, [request([5, 6], drafter, sampling=sampling, max_new_tokens=length)])
        assert (len(text.new), text.ended) == (length, "length")
    for stop in free[:8]:
        (text,) = both(model, [request([5, 6], drafter, sampling=sampling, stop_ids=frozenset([stop]))])
        assert (text.new, text.ended) == (free[: free.index(stop)], "stop")
        assert text.n_guessed == text.n_guessed_right, "something was guessed behind the end"


@pytest.mark.parametrize("drafted", ["model", "lookup"])
def test_a_text_slides_on_with_guesses(drafted: str) -> None:
    model = random_model(llama())
    drafter = DraftModel(random_model(llama()), model) if drafted == "model" else PromptLookup()
    (text,) = both(model, [request(list(range(50)), drafter, sampling=DRAWN, max_new_tokens=90, slides=True)])
    assert len(text.new) == 90
    if drafted == "model":
        assert text.n_guessed == text.n_guessed_right


@pytest.mark.parametrize("sees", ["window", "chunk"])
def test_windows_need_an_engine_that_rewinds(sees: str) -> None:
    config = llama(window=8, layers=(sees, "full", sees))
    model = random_model(config)
    with pytest.raises(ValueError, match="guessed tokens need an engine that is rewindable"):
        Engine(model).add(request([1], PromptLookup()))
    for drafter in (DraftModel(random_model(config), model), DraftModel(random_model(config, seed=1), model)):
        texts = both(model, [request(prompt, drafter, sampling=DRAWN) for prompt in PROMPTS])
    (text,) = generate_all(model, [request([5, 6], DraftModel(model, model))])
    assert text.n_guessed == text.n_guessed_right
    assert all(text.ended for text in texts)


def test_a_draft_with_a_shorter_context_guesses_nothing_behind_it() -> None:
    model = random_model(llama())
    drafter = DraftModel(random_model(llama(max_seq_len=16)), model)
    (text,) = both(model, [request([5, 6], drafter, max_new_tokens=60)])
    assert text.n_guessed <= 16


def test_odds_are_told_of_guessed_tokens_too() -> None:
    model = random_model(llama())
    (text,) = both(model, [request([5, 6], DraftModel(model, model), sampling=GREEDY)])
    assert not text.odds
    engine = Engine(model, n_slots=1, rewindable=True)
    told = engine.add(request([5, 6], DraftModel(model, model), sampling=GREEDY, n_alternatives=1))
    while not engine.is_idle:
        engine.step()
    assert [one.token for one in told.odds] == [one.likeliest[0][0] for one in told.odds] == told.new == text.new


def test_a_draft_of_another_vocabulary_is_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"vocabulary of 100 tokens .* one of 131"):
        DraftModel(random_model(llama(vocab_size=100)), random_model(llama()))


def test_guesses_change_no_odds() -> None:
    """Chi-square of pairs of tokens over many seeds, beside the odds that the model gives them."""
    config = llama(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=24, vocab_size=4, padded_vocab_size=4)
    model = random_model(config, std=0.5)
    drafter = DraftModel(random_model(config, seed=1, std=0.5), model)
    n = 2000
    requests = [Request([0], 2, Sampling(0.7), seed=seed, drafter=drafter, n_guesses=1) for seed in range(n)]
    texts = generate_all(model, [Request(**{**vars(each), "max_new_tokens": 3}) for each in requests], n_slots=32)
    counts = Counter(tuple(text.new[1:]) for text in texts)
    with torch.no_grad():
        first = (model(torch.tensor([[0]]))[0, -1] / 0.7).softmax(-1)
        second = (model(torch.tensor([[0, a] for a in range(4)]))[:, -1] / 0.7).softmax(-1)
        whole = torch.tensor([[0, a, b] for a in range(4) for b in range(4)])
        third = (model(whole)[:, -1] / 0.7).softmax(-1).view(4, 4, 4)
    expected = n * torch.einsum("a,ab,abc->bc", first, second, third)
    chi = sum((counts[b, c] - expected[b, c].item()) ** 2 / expected[b, c].item() for b in range(4) for c in range(4))
    assert 0 < sum(text.n_guessed_right for text in texts) < n
    assert chi < 50, "passed by chance once in a million"
