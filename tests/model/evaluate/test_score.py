"""Scores of packed and shared rows are those of each pair alone, for any order, length and batch."""

from __future__ import annotations

import math
import random

import pytest
import torch

from launchyard.model.config import ModelConfig, RopeScaling
from launchyard.model.evaluate.score import Score, score
from launchyard.model.network.transformer import Transformer
from tests.support.tiny_models import CONFIGS, llama, neox, random_model

Pair = tuple[list[int], list[int]]
OTHERS = {
    "turns-by-length": llama(
        rope_scaling=RopeScaling(factor=4.0, kind="dynamic", original_max_seq_len=16), max_seq_len=64
    ),
    "window": llama(layers=("window", "full"), window=8),
}
SAMPLE = ["neox", "neox-padded", "llama-scaled", "llama-one-kv-tied"]


def some_pairs(config: ModelConfig, *, seed: int = 0) -> list[Pair]:
    """Several choices behind a context, contexts that others begin with, and some that are too long."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(config.vocab_size) for _ in range(draw.randint(low, high))]

    pairs = []
    for _ in range(6):
        context = ids(1, config.max_seq_len + 10)
        pairs += [(context, ids(1, 5)) for _ in range(3)]
        pairs += [(context, [draw.randrange(config.vocab_size)]), (context[: len(context) // 2 + 1], ids(1, 2))]
    draw.shuffle(pairs)
    return pairs


def alone(model: Transformer, pair: Pair) -> Score:
    context, continuation = pair
    ids = [*context, *continuation][-(model.config.max_seq_len + 1) :]
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids[:-1]]))[0, -len(continuation) :].log_softmax(-1)
    own = logprobs[range(len(continuation)), continuation]
    return Score(own.sum().item(), logprobs.argmax(-1).tolist() == continuation)


@pytest.mark.parametrize("name", [*SAMPLE, *OTHERS])
def test_a_pair_scores_the_same_among_others_as_alone(name: str) -> None:
    model = random_model(OTHERS.get(name) or CONFIGS[name])
    pairs = some_pairs(model.config)
    with torch.inference_mode():  # so that some are greedy
        pairs[3] = (pairs[3][0][:20], [int(model(torch.tensor([pairs[3][0][:20]]))[0, -1].argmax())])
    expected = [alone(model, pair) for pair in pairs]
    assert any(one.is_greedy for one in expected)
    for batch_tokens in (1, 150, 10_000):
        found = score(model, pairs, batch_tokens=batch_tokens)
        assert [one.is_greedy for one in found] == [one.is_greedy for one in expected]
        assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-3)


def test_what_pairs_have_in_common_is_computed_once() -> None:
    model = random_model(llama())
    seen = []
    model.embed.register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    context = list(range(40))
    score(model, [(context, [choice]) for choice in range(20)])
    assert seen == [40]
    seen.clear()
    score(model, [(context, [1, 2]), (context, [1, 2, 3]), (context, [5])])
    assert seen == [42]


def test_a_context_is_cut_from_the_left() -> None:
    model = random_model(llama())
    context = list(range(50))
    assert score(model, [(context, [1, 2])], max_length=10) == score(model, [(context[-9:], [1, 2])])


def test_progress_reaches_all_pairs() -> None:
    model = random_model(llama())
    told: list[tuple[int, int]] = []
    pairs = some_pairs(model.config)
    score(model, pairs, batch_tokens=100, on_progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (len(pairs), len(pairs))
    assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (([], [1]), "a context has no tokens"),
        (([1], []), "a continuation has no tokens"),
        (([1], [1] * 65), "65 tokens; max_length is 64"),
        (([1, 500], [1]), "token 500 is not in the model's vocabulary of 131"),
        (([1], [500]), "token 500 is not in the model's vocabulary of 131"),
    ],
)
def test_what_cannot_be_scored_is_refused(pair: Pair, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        score(random_model(llama()), [([1], [2]), pair])


def test_a_model_without_numbers_is_named() -> None:
    model = random_model(llama())
    with torch.no_grad():
        model.embed.weight[3] = math.nan
    assert math.isfinite(score(model, [([1], [2])])[0].logprob)
    with pytest.raises(ValueError, match="gives no odds but NaN: its weights hold such numbers"):
        score(model, [([1], [2]), ([1, 3], [2])])


def test_rows_of_padding_count_as_in_training() -> None:
    """They have logits like all others, and so in the loss, in an export, and in transformers."""
    model = random_model(neox(vocab_size=100))
    padded = score(model, [([1, 2], [3])])[0].logprob
    assert padded == pytest.approx(model(torch.tensor([[1, 2]]))[0, -1].log_softmax(-1)[3].item(), abs=1e-4)
