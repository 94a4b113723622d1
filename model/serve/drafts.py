"""Guesses of the next tokens for an engine to check: from the text itself, or by a smaller model. Knows no engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from launchyard.model.network.kv_cache import Cache
from launchyard.model.network.positions import rotation_regime
from launchyard.model.network.transformer import Projection, Transformer
from launchyard.model.serve.requests import Generation
from launchyard.model.serve.sampling import change_logits, draw_tokens

_CHUNK = 512  # tokens that a smaller model reads at once


class PromptLookup:
    """What followed the last tokens where they stood before: of the longest run of them, at its latest place.

    For texts that repeat their prompt or themselves, such as summaries and code. Costs no model.
    """

    def __init__(self, *, longest: int = 3, shortest: int = 1) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"shortest is {shortest} and longest {longest}; both must be at least 1, in this order")
        self.longest = longest
        self.shortest = shortest

    def guess(self, context: Sequence[int], text: Generation, uniform: Sequence[float]) -> list[int]:
        follows = self._follows(context)
        if follows is None:
            return []
        period = len(context) - follows  # a text that repeats goes on in its period
        return [context[follows + place % period] for place in range(len(uniform))]

    def _follows(self, context: Sequence[int]) -> int | None:
        """The place behind the best match."""
        best = 0
        found = None
        for place in _places_before_last(context):
            n = self._alike(context, place)
            if n > best:
                best = n
                found = place + 1
            if n == self.longest:
                break
        return found if best >= self.shortest else None

    def _alike(self, context: Sequence[int], place: int) -> int:
        """Tokens up to `place` that are those at the end, of `longest`."""
        n = 0
        while n < self.longest and n <= place and context[place - n] == context[-1 - n]:
            n += 1
        return n


def _places_before_last(context: Sequence[int]) -> Iterator[int]:
    """Where the last token stands before, from the latest place on."""
    return (place for place in range(len(context) - 2, -1, -1) if context[place] == context[-1])


@dataclass(eq=False)
class _Row:
    """A cache of one text, and the ids in it."""

    cache: Cache
    ids: list[int] = field(default_factory=list)


class DraftModel:
    """A smaller model of the same vocabulary, which draws by the rule and the numbers of the text itself.

    So a guess is right where both models agree about the number. It has a cache for each text that it guesses for, and
    guesses nothing where its own context is full. ValueError if the vocabularies differ.
    """

    def __init__(self, model: Transformer, target: Transformer) -> None:
        own = model.config.vocab_size
        wanted = target.config.vocab_size
        if own != wanted:
            raise ValueError(
                f"the draft model has a vocabulary of {own} tokens and the model itself one of {wanted}; a draft needs "
                "the same tokenizer"
            )
        self.model = model
        self._rows: WeakKeyDictionary[Generation, _Row] = WeakKeyDictionary()

    @torch.inference_mode()
    def guess(self, context: Sequence[int], text: Generation, uniform: Sequence[float]) -> list[int]:
        row = self._row_of(text)
        request = text.request
        guesses: list[int] = []
        for number in uniform[: max(0, row.cache.length - len(context) + 1)]:
            logits = self._logits(row, [*context, *guesses])
            if request.sampling.changes_logits:
                change_logits(logits[0], request.sampling, request.prompt, [*text.new, *guesses])
            guesses += self.model.agreed(draw_tokens(logits, request.sampling, [number]), at_most=1)
            if guesses[-1] in request.stop_ids:
                break
        return guesses

    def _logits(self, row: _Row, ids: Sequence[int]) -> Tensor:
        """(1, V) fp32 behind ids, of which the row may hold a beginning."""
        shared = _shared(row.ids, ids[:-1])
        del row.ids[shared:]
        while len(row.ids) < len(ids):
            some = list(ids[len(row.ids) : len(row.ids) + _CHUNK])
            row.cache.select(0, [len(row.ids)])
            logits = self.model(torch.tensor([some], device=row.cache.device), cache=row.cache, head=_last)
            row.ids += some
        return logits[:, : self.model.config.vocab_size].float()

    def _row_of(self, text: Generation) -> _Row:
        """Its own; a new text takes that of one that has ended, where it is large enough."""
        if text in self._rows:
            return self._rows[text]
        config = self.model.config
        planned = len(text.request.prompt) + text.request.max_new_tokens
        planned = min(planned, config.position_limit or planned)
        row = None
        for ended in [other for other in self._rows if other.ended is not None]:
            free = self._rows.pop(ended)
            if free.cache.length >= planned and rotation_regime(config, planned) is None:
                row = free
        self._rows[text] = row or _Row(self._cache(planned))
        return self._rows[text]

    def _cache(self, length: int) -> Cache:
        return self.model.new_cache(batch_size=1, length=length, rewindable=True)


def _last(hidden: Tensor, projection: Projection) -> Tensor:
    return projection(hidden[:, -1])


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    if len(one) <= len(other) and list(one) == list(other[: len(one)]):  # nearly always, and far quicker
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
