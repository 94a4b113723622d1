"""The engine: neighbours, slots and chunks change nothing of a text, and what is free is used again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from launchyard.model.config import ModelConfig
from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.engine import Engine
from launchyard.model.serve.generate import generate, generate_all
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from tests.support.tiny_models import CONFIGS, llama, neox, random_model, random_tokens

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [3], [90, 80, 70, 60], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]]
RULES = {"temperature", "top_k", "top_p"}


def request(prompt: list[int], max_new_tokens: int, **options: Any) -> Request:
    """Greedy, if nothing else is said."""
    sampling = {key: options.pop(key) for key in RULES & options.keys()}
    stop_ids = frozenset(options.pop("stop_ids", ()))
    return Request(prompt, max_new_tokens, Sampling(**{"temperature": 0.0, **sampling}), stop_ids, **options)


def write(model: Transformer, prompt: list[int], max_new_tokens: int, **options: Any) -> list[int]:
    return list(generate(model, request(prompt, max_new_tokens, **options)))


def by_hand(model: Transformer, prompt: list[int], n: int) -> list[int]:
    """Greedy, the whole text through the model for each token."""
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1, : model.config.vocab_size].argmax()))
    return ids[len(prompt) :]


# -- a text ----------------------------------------------------------------------------------------------------------
@each_config
def test_greedy_is_the_likeliest_token_each_time(config: ModelConfig) -> None:
    model = random_model(config)
    assert write(model, PROMPTS[0], 20) == by_hand(model, PROMPTS[0], 20)


@each_config
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("n_slots", "prompt_chunk"), [(4, 512), (2, 4)])
def test_texts_together_are_each_of_them_alone(
    config: ModelConfig, temperature: float, n_slots: int, prompt_chunk: int
) -> None:
    """With some that end early at a stop token, more than there are slots, and prompts that are read in pieces."""
    model, prompts = random_model(config), [[token % config.vocab_size for token in prompt] for prompt in PROMPTS * 2]
    options: dict[str, Any] = {"temperature": temperature, "top_k": 20, "stop_ids": range(12)}
    requests = [request(prompt, 25, seed=40 + n, **options) for n, prompt in enumerate(prompts)]
    alone = [list(generate(model, each)) for each in requests]
    engine = Engine(model, n_slots=n_slots, length=64, prompt_chunk=prompt_chunk)
    together = [engine.add(each) for each in requests]
    while not engine.is_idle:
        engine.step()
    assert [each.new for each in together] == alone
    assert [each.ended for each in together] == ["stop" if len(ids) < 25 else "length" for ids in alone]
    if temperature:
        assert len({len(ids) for ids in alone}) > 1, "no text ended early; choose other stop tokens"


def test_seeds_decide_and_nothing_else_does() -> None:
    model = random_model(neox())

    def drawn(seed: int | None) -> list[int]:
        return write(model, [1, 2], 20, temperature=1.0, seed=seed)

    torch.manual_seed(0)
    first, state = drawn(7), torch.get_rng_state()
    torch.manual_seed(1)
    assert drawn(7) == first != drawn(8)
    assert drawn(None) != drawn(None)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


def test_a_stop_token_ends_the_text_and_is_no_part_of_it() -> None:
    model = random_model(llama())
    free = write(model, [1, 2], 20)
    assert write(model, [1, 2], 20, stop_ids=[free[5]]) == free[: free.index(free[5])]


def test_a_text_ends_where_the_context_is_full() -> None:
    model = random_model(neox())
    prompts = [list(range(60)), list(range(10)), list(range(64))]
    texts = generate_all(model, [request(prompt, 30) for prompt in prompts])
    assert [(len(text.new), text.ended) for text in texts] == [(4, "context"), (30, "length"), (0, "context")]
    assert texts[1].new == by_hand(model, prompts[1], 30)


def test_a_text_slides_on_with_the_last_half_of_its_context() -> None:
    model = random_model(neox())  # of 64 positions
    new = write(model, list(range(50)), 60, slides=True)
    context = list(range(50))
    for token in new:
        assert token == by_hand(model, context, 1)[0]
        context.append(token)
        context = context[-32:] if len(context) >= 64 else context
    long = list(range(100))
    assert write(model, long, 5, slides=True)[0] == by_hand(model, long[-64:], 1)[0]


def test_tokens_come_while_they_are_made() -> None:
    model = random_model(neox())
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    tokens = generate(model, request([1, 2], 20))
    assert not calls
    next(tokens)
    next(tokens)
    assert len(calls) == 2


def test_padding_of_the_vocabulary_is_never_drawn() -> None:
    model = random_model(neox(vocab_size=4), seed=3)  # 131 rows, 4 of them real
    assert set(write(model, [1, 2], 60, temperature=5.0, seed=0)) == {0, 1, 2, 3}


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
        generate(random_model(neox()), request(prompt, **{"max_new_tokens": 3, **options}))


# -- odds ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prompt_chunk", [512, 4])
def test_odds_are_those_of_the_model_itself(prompt_chunk: int) -> None:
    model, prompt = random_model(llama()), PROMPTS[3]
    engine = Engine(model, n_slots=2, prompt_chunk=prompt_chunk)
    engine.add(request(prompt, 5))
    text = engine.add(request(prompt, 6, temperature=0.7, seed=1, n_alternatives=3, prompt_odds=True))
    while not engine.is_idle:
        engine.step()
    ids = [*prompt, *text.new]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids]))[0, :, : model.config.vocab_size].log_softmax(-1)
    told = [*text.prompt_odds, *text.odds]
    assert [one.token for one in told] == ids[1:]
    for one, own in zip(told, logprobs, strict=False):
        assert one.logprob == pytest.approx(own[one.token].item(), abs=1e-4)
        values, tokens = own.topk(3)
        assert [token for token, _ in one.likeliest] == tokens.tolist()
        assert [value for _, value in one.likeliest] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_prompt_can_be_scored_without_a_new_token() -> None:
    (text,) = generate_all(random_model(llama()), [request(PROMPTS[0], 0, prompt_odds=True)])
    assert (len(text.prompt_odds), text.new, text.ended) == (len(PROMPTS[0]) - 1, [], "length")


# -- slots -----------------------------------------------------------------------------------------------------------
@each_config
def test_what_two_prompts_share_is_read_once(config: ModelConfig) -> None:
    model, shared = random_model(config), [token % config.vocab_size for token in range(7, 37)]
    engine = Engine(model, n_slots=2, length=64)
    first = engine.add(request([*shared, 1], 6))
    while first.ended is None:
        engine.step()
    again = engine.add(request([*shared, 1, *first.new[:-1], 4], 6))  # goes on from the text that ended
    while again.ended is None:
        engine.step()
    others = [engine.add(request([*shared, last], 9)) for last in (3, 5)]
    while not engine.is_idle:
        engine.step()
    assert again.n_reused == 31 + len(first.new) - 1
    if engine._cache.rewinds:
        assert [other.n_reused for other in others] == [30, 30]
    for text in (again, *others):
        assert text.new == write(model, list(text.request.prompt), text.request.max_new_tokens)
    assert engine.counts.prompt + engine.counts.reused == 31 + 31 + len(first.new) + 31 * 2


@each_config
def test_a_text_that_nobody_waits_for_gives_its_slot_back_at_once(config: ModelConfig) -> None:
    model, prompts = random_model(config), [[token % config.vocab_size for token in prompt] for prompt in PROMPTS]
    engine = Engine(model, n_slots=3, length=64, prompt_chunk=6)
    texts = [engine.add(request(prompt, 20)) for prompt in prompts]
    engine.step()
    engine.step()
    for gone in (texts[0], texts[2]):
        engine.cancel(gone)
    late = engine.add(request(prompts[0], 20))
    assert texts[0].ended == texts[2].ended == "cancelled"
    while not engine.is_idle:
        engine.step()
    assert engine.n_running == engine.n_waiting == 0
    for text in (texts[1], texts[3], late):
        assert text.new == write(model, list(text.request.prompt), 20)
    engine.cancel(late)  # which has ended: nothing to do
    assert late.ended == "length"


def test_a_long_prompt_stalls_no_text() -> None:
    engine = Engine(random_model(llama(max_seq_len=512)), n_slots=2, prompt_chunk=50)
    text = engine.add(request([1, 2], 20))
    engine.step()
    engine.add(request([token % 100 for token in range(300)], 1))
    for _ in range(5):
        before = len(text.new)
        engine.step()
        assert len(text.new) == before + 1


@pytest.mark.parametrize("positions", ["none", "alibi"])
@torch.no_grad()
def test_what_has_no_numbers_of_positions_writes_on_past_max_seq_len(positions: str) -> None:
    config = llama(positions=positions, max_seq_len=16)
    model = random_model(config)
    prompt = random_tokens(config, 1, 20)[0].tolist()
    new = write(model, prompt, 12)
    assert len(new) == 12
    whole = model(torch.tensor([prompt + new]))[0, len(prompt) - 1 : -1, : config.vocab_size]
    assert whole.argmax(-1).tolist() == new
    rotated = random_model(llama(max_seq_len=16))
    with pytest.raises(ValueError, match="the prompt has 20 tokens; this model has max_seq_len 16"):
        generate(rotated, request(prompt, 1))
    assert len(write(rotated, prompt[:10], 12)) == 6


def test_what_lay_in_memory_before_does_not_reach_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a shorter row positions are read before they are written; they are masked, but a NaN would come through."""
    real = torch.empty

    def dirty(*size: Any, **options: Any) -> torch.Tensor:
        made = real(*size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    model, prompts = random_model(neox()), [[1, 2, 3, 4, 5, 6], [7], [8, 9]]
    alone = [write(model, prompt, 12) for prompt in prompts]
    monkeypatch.setattr(torch, "empty", dirty)
    assert [text.new for text in generate_all(model, [request(prompt, 12) for prompt in prompts])] == alone
