"""Beam search: as good as a look at all texts where it is wide enough, and never over too early."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from launchyard.model.config import ModelConfig
from launchyard.model.network.transformer import Transformer
from launchyard.model.serve import beam as beam_module
from launchyard.model.serve.beam import Beam, BeamSearch, search_beams
from launchyard.model.serve.generate import generate_all
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from tests.support.tiny_models import CONFIGS, llama, neox, random_model

PROMPT = [1, 0, 2]
IsEnd = Callable[[Sequence[int]], bool]
each_penalty = pytest.mark.parametrize("penalty", [0.0, 1.0, 0.6, 2.5, -1.0])


def tiny(seed: int = 0) -> Transformer:
    """Of five tokens."""
    knobs = {"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 24}
    return random_model(llama(vocab_size=5, padded_vocab_size=8, **knobs), seed=seed, std=0.4)


def never(ids: Sequence[int]) -> bool:
    return False


def at_a_pair(ids: Sequence[int]) -> bool:
    """As at a string of two tokens."""
    return tuple(ids[-2:]) == (2, 1)


def all_texts(depth: int, stops: frozenset[int], is_end: IsEnd, ids: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """With the token that ends one."""
    if len(ids) == depth or (ids and ids[-1] in stops) or is_end(ids):
        yield ids
        return
    for token in range(5):
        yield from all_texts(depth, stops, is_end, (*ids, token))


@torch.no_grad()
def exhaustive(model: Transformer, depth: int, stops: frozenset[int], is_end: IsEnd, penalty: float) -> list[Beam]:
    found = []
    texts = list(all_texts(depth, stops, is_end))
    rows = torch.tensor([[*PROMPT, *ids, *[0] * (depth - len(ids))] for ids in texts])
    logprobs = model(rows)[:, len(PROMPT) - 1 : -1, :5].double().log_softmax(-1)
    for ids, own in zip(texts, logprobs, strict=True):
        logprob = own[: len(ids)].gather(-1, torch.tensor(ids)[:, None]).sum().item()
        stopped = ids[-1] in stops
        new = ids[:-1] if stopped else ids
        ended = "stop" if stopped or is_end(ids) else "length"
        found.append(Beam(new, logprob, logprob / len(ids) ** penalty, ended))
    return sorted(found, key=lambda beam: -beam.score)


@each_penalty
@pytest.mark.parametrize("is_end", [never, at_a_pair])
@pytest.mark.parametrize("stops", [frozenset[int](), frozenset([3]), frozenset([0, 4])], ids=str)
def test_wide_enough_it_finds_what_a_look_at_all_texts_finds(
    stops: frozenset[int], is_end: IsEnd, penalty: float
) -> None:
    for seed in range(2):
        model = tiny(seed)
        expected = exhaustive(model, 4, stops, is_end, penalty)[:60]
        found = search_beams(model, PROMPT, BeamSearch(700, 60, 4, stops, penalty, is_end))
        assert [(beam.ids, beam.ended) for beam in found] == [(beam.ids, beam.ended) for beam in expected]
        for beam, other in zip(found, expected, strict=True):
            assert (beam.logprob, beam.score) == pytest.approx((other.logprob, other.score), abs=1e-5)
    if stops:
        assert len({len(beam.ids) for beam in expected}) > 1, "all texts end alike"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_width_one_is_greedy(config: ModelConfig) -> None:
    model = random_model(config)
    prompt = [5, 6, 7]
    for stops in (frozenset[int](), frozenset(range(0, 60, 3))):
        (text,) = generate_all(model, [Request(prompt, 20, Sampling(temperature=0), stops)])
        (beam,) = search_beams(model, prompt, BeamSearch(1, 1, 20, stops))
        assert (list(beam.ids), beam.ended) == (text.new, text.ended)


def test_a_beam_is_as_likely_as_the_model_says() -> None:
    """Through a cache whose rows change their places, of layers with a window, too; the prompt is read in pieces."""
    config = llama(window=6, layers=("window", "full"), n_layers=2)
    model = random_model(config, std=0.1)
    prompt = list(range(20))
    whole = search_beams(model, prompt, BeamSearch(6, 6, 12))
    for beam in whole:
        with torch.no_grad():
            logprobs = model(torch.tensor([[*prompt, *beam.ids]]))[0, 19:-1, : config.vocab_size].log_softmax(-1)
        own = logprobs.gather(-1, torch.tensor(beam.ids)[:, None]).sum().item()
        assert (beam.logprob, beam.score) == pytest.approx((own, own / 12), abs=1e-4)
    assert len({beam.ids for beam in whole}) == 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam_module, "_CHUNK", 7)
        assert [beam.ids for beam in search_beams(model, prompt, BeamSearch(6, 6, 12))] == [beam.ids for beam in whole]


def test_wider_finds_better() -> None:
    model = random_model(llama(), std=0.1)
    scores = [search_beams(model, [5, 6], BeamSearch(width, 1, 8))[0].score for width in (1, 40)]
    assert scores[1] > scores[0]


def tell_odds(monkeypatch: pytest.MonkeyPatch, behind_prompt: list[float], later: list[float]) -> list[int]:
    """Instead of a model -> how many rows each step had."""
    steps: list[int] = []

    def told(search: object, rows: list[list[int]]) -> torch.Tensor:
        steps.append(len(rows))
        return torch.tensor([behind_prompt if len(steps) == 1 else later] * len(rows)).log()

    monkeypatch.setattr(beam_module._Search, "_forward", told)
    return steps


def test_it_ends_early_only_when_no_open_text_can_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that ends at once with odds of 1/2 is beaten, by the penalty, by one whose every token is nearly sure."""
    steps = tell_odds(monkeypatch, [0.48, 0.5, 0.01, 0.005, 0.005], [0.997, 0.001, 0.001, 0.0005, 0.0005])
    model = tiny()
    stops = frozenset([1])
    (won,) = search_beams(model, PROMPT, BeamSearch(2, 1, 6, stops, 1.0))
    assert (won.ids, won.ended, len(steps)) == ((0,) * 6, "length", 6)
    steps.clear()
    (first,) = search_beams(model, PROMPT, BeamSearch(2, 1, 6, stops, 0.0))
    assert (first.ids, first.ended, len(steps)) == ((), "stop", 1), "a longer text is never likelier"
    steps.clear()
    (short,) = search_beams(model, PROMPT, BeamSearch(2, 1, 6, stops, -1.0))
    assert (short.ids, len(steps)) == ((), 1)
    steps.clear()
    two = search_beams(model, PROMPT, BeamSearch(2, 2, 6, stops, 0.0))
    assert [beam.ended for beam in two] == ["stop", "length"]


def test_a_short_text_that_still_can_win_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = tell_odds(monkeypatch, [0.74, 0.2466, 0.005, 0.005, 0.0034], [0.001, 0.997, 0.001, 0.0005, 0.0005])
    (won,) = search_beams(tiny(), PROMPT, BeamSearch(2, 1, 6, frozenset([1]), -1.0))
    assert (won.ids, won.ended, len(steps)) == ((0,), "stop", 2)


def test_it_ends_where_the_context_is_full() -> None:
    model = random_model(neox())  # of 64 positions
    found = search_beams(model, list(range(60)), BeamSearch(3, 3, 30))
    assert [(len(beam.ids), beam.ended) for beam in found] == [(4, "context")] * 3


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ([], {}, "the prompt is empty"),
        (list(range(64)), {}, "the prompt has 64 tokens; the context has 64, one of them for a new token"),
        ([1], {"width": 0}, "width is 0"),
        ([1], {"n": 5}, "5 texts are wanted of a beam search of width 4"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([1], {"length_penalty": float("nan")}, "length_penalty is nan"),
    ],
)
def test_what_cannot_be_searched_is_said(prompt: list[int], options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        search_beams(random_model(neox()), prompt, BeamSearch(**{"width": 4, "n": 1, "max_new_tokens": 3, **options}))
