"""Beam search: several beginnings of a text, of which the likeliest go on together. Knows no text and no sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from launchyard.model.network.transfers import device_of_fp64, in_fp64
from launchyard.model.network.transformer import Projection, Transformer

_CHUNK = 512  # tokens of the prompt at once
# As of requests.Ended; nobody cancels a beam.
BeamEnded = Literal["stop", "length", "context"]


@dataclass(frozen=True)
class BeamSearch:
    """What is searched for, and how widely.

    The rank of a text is its log-probability / its tokens ** length_penalty, the token that ends it included: above 0
    the penalty favours long texts, below 0 short ones. width: texts that go on at each token; n: how many are wanted.
    is_end: says of the ids of a text whether it ends with the last of them, as at a string; None: never.
    context_length: tokens that prompt and text may have together, no more than the model has positions.
    """

    width: int
    n: int
    max_new_tokens: int
    stop_ids: frozenset[int] = field(default_factory=frozenset)
    length_penalty: float = 1.0
    is_end: Callable[[Sequence[int]], bool] | None = None
    context_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "n", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.n > self.width:
            raise ValueError(f"{self.n} texts are wanted of a beam search of width {self.width}; widen it")
        if not -100 < self.length_penalty < 100:
            raise ValueError(f"length_penalty is {self.length_penalty}; it must be a number such as 1, or 0 for none")

    def score(self, logprob: float, n_tokens: int) -> float:
        return float(logprob / n_tokens**self.length_penalty)


@dataclass(frozen=True)
class Beam:
    """A text: its new ids without an end token, which its odds have in them."""

    ids: tuple[int, ...]
    logprob: float
    score: float
    ended: BeamEnded


@torch.inference_mode()
def search_beams(model: Transformer, prompt: Sequence[int], search: BeamSearch) -> list[Beam]:
    """The n best texts behind a prompt, best first; fewer if there are no more. ValueError for a prompt too long.

    The same as all texts compared where `width` is enough for all; the likeliest token each time where it is 1.
    """
    return _Search(model, prompt, search).run()


class _Search:
    """Open beams are the first rows of a cache; each step the likeliest of all that may follow them go on."""

    def __init__(self, model: Transformer, prompt: Sequence[int], search: BeamSearch) -> None:
        limits = [limit for limit in (model.config.position_limit, search.context_length) if limit is not None]
        room = min(limits) - len(prompt) if limits else search.max_new_tokens
        if not prompt:
            raise ValueError("the prompt is empty; a model needs at least one token to go on from")
        if room < 1:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens; the context has {min(limits)}, one of them for a new token"
            )
        self.model = model
        self.prompt = list(prompt)
        self.search = search
        self.longest = min(room, search.max_new_tokens)
        self.ended: BeamEnded = "length" if self.longest == search.max_new_tokens else "context"
        self.open: list[tuple[int, ...]] = [()]
        self.logprobs = [0.0]
        self.finished: list[Beam] = []
        self.cache = model.new_cache(batch_size=search.width, length=len(self.prompt) + self.longest)

    def run(self) -> list[Beam]:
        logits = self._read_prompt()
        for n in range(1, self.longest + 1):
            sources = self._extend(logits, n)
            if not self.open or self._is_decided(n) or n == self.longest:
                break
            self.cache.select(0, [len(self.prompt) + n - 1] * max(len(sources), len(logits)))
            self.cache.keep(sources)
            logits = self._forward([ids[-1:] for ids in self.open])
        if not self._is_decided(n):
            for ids, logprob in zip(self.open, self.logprobs, strict=True):
                self._finish(ids, logprob, n, self.ended)
        return self.finished

    def _read_prompt(self) -> Tensor:
        for first in range(0, len(self.prompt), _CHUNK):
            self.cache.select(0, [first])
            logits = self._forward([self.prompt[first : first + _CHUNK]])
        return logits

    def _forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        ids = torch.tensor(rows, device=self.cache.device)
        return self.model(ids, cache=self.cache, head=_last)[:, : self.model.config.vocab_size]

    def _extend(self, logits: Tensor, n: int) -> list[int]:
        """Put each open beam's best next tokens in its place -> of each new one the row it goes on from."""
        before = torch.tensor(self.logprobs, dtype=torch.float64, device=device_of_fp64(logits.device))
        totals = (before[:, None] + torch.log_softmax(in_fp64(logits), dim=-1)).flatten()
        best, places = torch.topk(totals, min(self.search.width, len(totals)))
        beams = self.open
        self.open = []
        self.logprobs = []
        sources = []
        for logprob, place in zip(best.tolist(), places.tolist(), strict=True):
            source, token = divmod(place, logits.shape[-1])
            if token in self.search.stop_ids:
                self._finish(beams[source], logprob, n, "stop")
                continue
            ids = (*beams[source], token)
            if self.search.is_end is not None and self.search.is_end(ids):
                self._finish(ids, logprob, n, "stop")
                continue
            self.open.append(ids)
            self.logprobs.append(logprob)
            sources.append(source)
        return sources

    def _finish(self, ids: tuple[int, ...], logprob: float, n: int, ended: BeamEnded) -> None:
        self.finished.append(Beam(ids, logprob, self.search.score(logprob, n), ended))
        self.finished.sort(key=lambda beam: -beam.score)
        del self.finished[self.search.n :]

    def _is_decided(self, n: int) -> bool:
        """True if no open beam, after n tokens, can come before the finished ones: it only gets less likely."""
        if len(self.finished) < self.search.n:
            return False
        hopes = (
            self.search.score(logprob, n_tokens)
            for logprob in self.logprobs
            for n_tokens in {min(n + 1, self.longest), self.longest}
        )
        return max(hopes, default=-float("inf")) <= self.finished[-1].score


def _last(hidden: Tensor, projection: Projection) -> Tensor:
    return projection(hidden[:, -1])
