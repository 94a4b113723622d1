"""A transformer with what stands beside its weights: text in, text out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal, TypedDict, Unpack, overload

import torch

from launchyard.model.config import ModelConfig
from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.beam import BeamSearch, search_beams
from launchyard.model.serve.defaults import SamplingRules, sampling_rules
from launchyard.model.serve.drafts import DraftModel
from launchyard.model.serve.engine import Engine
from launchyard.model.serve.generate import engine_for
from launchyard.model.serve.matrices.place import Placed
from launchyard.model.serve.requests import Drafter, Ended, Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.serve.text import GrowingText, write_texts
from launchyard.model.text.chat import Chat
from launchyard.model.text.companions import Companions
from launchyard.model.text.find import TAKEN
from launchyard.model.text.special_tokens import SpecialTokens
from launchyard.model.text.tokenizer import Tokenizer
from launchyard.model.weights.source import Source

MAX_NEW_TOKENS = 128


class SamplingOptions(TypedDict, total=False):
    """As Sampling has them. What is left out is as in generation_config.json, else temperature 0.8 and top_k 50."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int | None
    logit_bias: Mapping[int, float]


class GenerateOptions(SamplingOptions, total=False):
    """How a text is written and where it ends.

    stop: it ends before these strings. seed: text n of several is drawn with seed + n. context_length: tokens that it
    may take, prompt included. slides: where they are full it goes on with their last half. drafter: guesses tokens.
    """

    max_new_tokens: int
    stop: str | Sequence[str] | None
    seed: int | None
    context_length: int | None
    slides: bool
    drafter: Drafter | None
    n_guesses: int
    n_alternatives: int | None


def special_tokens(companions: Companions, tokenizer: Tokenizer | None) -> SpecialTokens:
    return SpecialTokens(companions, vocabulary=tokenizer.vocabulary if tokenizer else None)


class LoadedModel:
    """For work on ids: `transformer` and model/serve/engine.py."""

    def __init__(
        self,
        transformer: Transformer,
        config: ModelConfig,
        source: Source,
        companions: Companions,
        tokenizer: Tokenizer | None,
        matrices: Placed | None = None,
        *,
        graphs: bool | None = None,
    ) -> None:
        """matrices: how they are laid out and coded; None: they are plain. graphs: as of `new_decoding`."""
        self.transformer = transformer
        self.matrices = matrices
        self.graphs = graphs
        self.config = config
        self.source = source
        self.companions = companions
        self._tokenizer = tokenizer

    @property
    def device(self) -> torch.device:
        return self.transformer.embed.weight.device

    @property
    def tokenizer(self) -> Tokenizer:
        """FileNotFoundError if the model came without one."""
        if self._tokenizer is None:
            also = ", nor in tokenizer/ of its run" if self.source.kind == "checkpoint" else ""
            raise FileNotFoundError(f"no tokenizer in {self.source.folder}{also}; give {TAKEN}")
        return self._tokenizer

    @cached_property
    def chat(self) -> Chat:
        """Chats by the model's own template; ValueError if it has none."""
        return Chat(self.tokenizer)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a text: all that generation_config.json, config.json or the tokenizer's own files name."""
        return frozenset(special_tokens(self.companions, self._tokenizer).ends())

    @cached_property
    def sampling_rules(self) -> SamplingRules:
        """Of generation_config.json, for what nobody says; an empty one may be put in its place. ValueError."""
        return sampling_rules(self.companions)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
        self, prompt: str, *, stream: Literal[False] = False, **options: Unpack[GenerateOptions]
    ) -> str: ...

    @overload
    def generate(self, prompt: str, *, stream: Literal[True], **options: Unpack[GenerateOptions]) -> Writing: ...

    @overload
    def generate(
        self, prompt: Sequence[str], *, stream: Literal[False] = False, **options: Unpack[GenerateOptions]
    ) -> list[str]: ...

    def generate(
        self, prompt: str | Sequence[str], *, stream: bool = False, **options: Unpack[GenerateOptions]
    ) -> str | list[str] | Writing:
        """The text that follows `prompt`, without it; with `stream` an iterator over its pieces as they are made.

        Ends after `max_new_tokens` (128), at the end of a text, before a string of `stop`, or where the context is
        full. An empty prompt starts a new text, if the tokenizer has a token for that. Of several prompts, of any
        lengths, the texts in their order. ValueError for invalid options.
        """
        if isinstance(prompt, str):
            writing = Writing(self, prompt, **options)
            return writing if stream else "".join(writing)
        if stream:
            raise ValueError("several prompts are not streamed; take `write`, which says which text a piece is of")
        texts = [""] * len(prompt)
        for number, piece, _ in self.write(prompt, **options):
            texts[number] += piece
        return texts

    def write(
        self, prompts: Sequence[str], *, n_slots: int = 8, **options: Unpack[GenerateOptions]
    ) -> Iterator[tuple[int, str, GrowingText]]:
        """Pieces of many texts, written together, as they are made: the number of its prompt, a piece, its text.

        The last piece of a text is empty: then its `ended` says how it went.
        """
        stops = _strings(options.get("stop"))
        requests = [self.request(self.encode(prompt), number, **options) for number, prompt in enumerate(prompts)]
        engine = self.engine_for(requests, n_slots=n_slots, context_length=options.get("context_length"))
        return write_texts(engine, self.tokenizer, [(request, stops) for request in requests])

    def request(self, ids: Sequence[int], number: int = 0, **options: Unpack[GenerateOptions]) -> Request:
        """Text `number` of several with these options."""
        seed = options.get("seed")
        sampling: SamplingOptions = {"temperature": 0.8, "top_k": 50}
        sampling.update(self.sampling_rules)  # type: ignore[typeddict-item]  # some of the same keys
        sampling.update({key: options[key] for key in SamplingOptions.__annotations__ if key in options})  # type: ignore
        return Request(
            prompt=list(ids),
            max_new_tokens=options.get("max_new_tokens", MAX_NEW_TOKENS),
            sampling=Sampling(**sampling),
            stop_ids=self.stop_ids,
            seed=None if seed is None else seed + number,
            slides=options.get("slides", False),
            drafter=options.get("drafter"),
            n_guesses=options.get("n_guesses", 4),
            n_alternatives=options.get("n_alternatives"),
        )

    def engine_for(self, requests: Sequence[Request], *, n_slots: int = 8, context_length: int | None = None) -> Engine:
        """An engine with room for these requests, and no more slots than they need."""
        return engine_for(
            self.transformer,
            requests,
            n_slots=max(1, min(n_slots, len(requests))),
            context_length=context_length,
            graphs=self.graphs,
        )

    def drafted_by(self, small: LoadedModel) -> DraftModel:
        """A drafter for this model. ValueError if the smaller one has other tokens."""
        drafter = DraftModel(small.transformer, self.transformer)
        if small.tokenizer.vocabulary != self.tokenizer.vocabulary:
            raise ValueError(
                f"the draft model of {small.source.folder} has other tokens than {self.source.folder}, though as many "
                f"({self.tokenizer.vocab_size}); a draft needs the same tokenizer"
            )
        return drafter

    def beam_search(
        self,
        prompt: str,
        *,
        width: int = 4,
        n: int = 1,
        max_new_tokens: int = MAX_NEW_TOKENS,
        length_penalty: float = 1.0,
        stop: str | Sequence[str] | None = None,
        context_length: int | None = None,
    ) -> list[tuple[str, float]]:
        """The n best of the texts that follow `prompt`, best first, and their scores: as of BeamSearch.

        One ends before a string of `stop`, whose tokens its score has in it.
        """
        search = BeamSearch(
            width=width,
            n=n,
            max_new_tokens=max_new_tokens,
            stop_ids=self.stop_ids,
            length_penalty=length_penalty,
            context_length=context_length,
        )
        return self.search_beams(self.encode(prompt), search, stop)

    def search_beams(
        self, ids: Sequence[int], search: BeamSearch, stop: str | Sequence[str] | None = None
    ) -> list[tuple[str, float]]:
        """The same behind ids."""
        stops = _strings(stop)
        if stops:
            search = replace(search, is_end=lambda new: _found(self._text_behind(ids, new), stops))
        beams = search_beams(self.transformer, ids, search)
        return [(_before(self._text_behind(ids, beam.ids), stops), beam.score) for beam in beams]

    def _text_behind(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        stream = self.tokenizer.stream(prompt)
        return "".join([*map(stream.add, ids), stream.flush()])

    def encode(self, prompt: str) -> list[int]:
        """Ids of a prompt; of an empty one that which begins a new text."""
        ids = self.tokenizer.encode(prompt)
        if ids or self.tokenizer.eos_id is None:
            return ids
        return [self.tokenizer.eos_id]  # the separator of two texts, so that a new one follows

    def benchmark(
        self, prompt: str = "The quick brown fox", *, max_new_tokens: int = 64, repeats: int = 5
    ) -> dict[str, float]:
        """Medians over `repeats` greedy texts: seconds to the first token, and tokens per second behind it."""
        firsts = []
        speeds = []
        for _ in range(repeats):
            began = time.perf_counter()
            writing = Writing(self, prompt, max_new_tokens=max_new_tokens, temperature=0.0, stop=None)
            writing.step()
            first = time.perf_counter()
            for _ in writing:
                pass
            firsts.append(first - began)
            speeds.append(max(writing.n_new - 1, 0) / max(time.perf_counter() - first, 1e-9))
        return {
            "first_token_seconds": statistics.median(firsts),
            "tokens_per_second": statistics.median(speeds),
            "n_prompt": writing.n_prompt,
            "n_new": writing.n_new,
            "repeats": repeats,
        }


class Writing:
    """A text that is being written: iterate over its pieces, once; afterwards it knows how it went."""

    def __init__(self, model: LoadedModel, prompt: str, **options: Unpack[GenerateOptions]) -> None:
        request = model.request(model.encode(prompt), **options)
        self._engine = model.engine_for([request], n_slots=1, context_length=options.get("context_length"))
        self.generation = self._engine.add(request)
        self._text = GrowingText(self.generation, model.tokenizer, _strings(options.get("stop")))
        self.n_prompt = len(request.prompt)

    @property
    def n_new(self) -> int:
        return self._text.n_new

    @property
    def ended(self) -> Ended | None:
        """None until the last piece."""
        return self._text.ended

    def step(self) -> str:
        """The piece of the next step, often empty."""
        self._engine.step()
        return self._text.take()

    def __iter__(self) -> Iterator[str]:
        while self.ended is None:
            if piece := self.step():
                yield piece


def _strings(stop: str | Sequence[str] | None) -> list[str]:
    """An empty one ends nothing."""
    return [one for one in ([stop] if isinstance(stop, str) else stop or ()) if one]


def _found(text: str, stops: Sequence[str]) -> bool:
    return any(stop in text for stop in stops)


def _before(text: str, stops: Sequence[str]) -> str:
    """The text before the first of some strings."""
    return text[: min((place for place in map(text.find, stops) if place >= 0), default=len(text))]
