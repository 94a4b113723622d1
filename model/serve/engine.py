"""Writes many texts at once: a step is some tokens of waiting prompts, then one more token of every text that grows.

Each text has a slot: a row of the cache. Slots of growing texts come first, so that a step reads a slice and copies
nothing. The cache of a text that has ended stays until its slot is wanted, for a prompt that begins alike. For one
thread; knows no text and no network.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from launchyard.model.network.positions import rotation_regime
from launchyard.model.network.transformer import Projection, Transformer
from launchyard.model.serve.decode.choose import new_decoding
from launchyard.model.serve.requests import Ended, Generation, Request, TokenOdds
from launchyard.model.serve.sampling import change_logits, draw_tokens

PROMPT_CHUNK = 512  # tokens of prompts in one step: so long do growing texts wait for them
_WORTH_COPYING = 16  # tokens that two prompts share


@dataclass(eq=False)
class _Slot:
    """A row of the cache: the ids whose keys and values it holds, and who writes there."""

    row: int
    ids: list[int] = field(default_factory=list)
    regime: int | None = None
    last_used: int = 0
    generation: Generation | None = None
    context: list[int] = field(default_factory=list)  # what the next token is to follow
    generator: torch.Generator = field(default_factory=torch.Generator)
    uniform: deque[float] = field(default_factory=deque)  # numbers that were drawn ahead of their tokens

    def numbers(self, n: int) -> list[float]:
        """Those by which the next n tokens will be drawn."""
        while len(self.uniform) < n:
            self.uniform.append(torch.rand((), generator=self.generator, dtype=torch.float64).item())
        return [self.uniform[place] for place in range(n)]


@dataclass
class Counts:
    """Tokens since the engine was made."""

    prompt: int = 0
    reused: int = 0
    new: int = 0
    steps: int = 0


class Engine:
    """length: positions that a text may take, prompt included; default: all that the model has.

    rewindable: for requests with a drafter, of models whose attention sees a window. graphs: as of `new_decoding`.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        n_slots: int = 8,
        length: int | None = None,
        prompt_chunk: int = PROMPT_CHUNK,
        rewindable: bool = False,
        graphs: bool | None = None,
    ) -> None:
        self.model = model
        limit = model.config.position_limit
        self.length = min(length or model.config.max_seq_len, limit or length or model.config.max_seq_len)
        self.counts = Counts()
        self.decoding = new_decoding(model, n_slots=n_slots, length=self.length, rewindable=rewindable, graphs=graphs)
        self._cache = self.decoding.cache
        self._slots = [_Slot(row) for row in range(n_slots)]  # by row
        self._n_growing = 0
        self._reading: list[_Slot] = []  # whose prompts are not all in the cache, in order
        self._waiting: deque[Generation] = deque()
        self._prompt_chunk = prompt_chunk

    # -- what is asked for ---------------------------------------------------------------------------------------------
    def add(self, request: Request) -> Generation:
        """Queue a request. ValueError for a prompt that is too long, or an id that the model does not have."""
        self.check(request)
        generation = Generation(request)
        self._waiting.append(generation)
        return generation

    def check(self, request: Request) -> None:
        config = self.model.config
        if len(request.prompt) > self.length and not request.slides:
            limit = config.position_limit
            what = "this model has max_seq_len" if self.length == limit else "the context has room for"
            raise ValueError(f"the prompt has {len(request.prompt)} tokens; {what} {self.length}")
        strange = [token for token in request.prompt if not 0 <= token < config.padded_vocab_size]
        if strange:
            raise ValueError(
                f"token {strange[0]} is not in the model's vocabulary of {config.padded_vocab_size}; is the tokenizer "
                "another model's?"
            )
        biased = [token for token in request.sampling.logit_bias if not 0 <= token < config.vocab_size]
        if biased:
            raise ValueError(f"logit_bias names token {biased[0]}; the model's vocabulary has {config.vocab_size}")
        if request.drafter is not None and not self._cache.rewinds:
            raise ValueError("guessed tokens need an engine that is rewindable")

    def cancel(self, generation: Generation) -> None:
        """Give its slot back before the next step."""
        if generation.ended is not None:
            return
        generation.ended = "cancelled"
        if generation in self._waiting:
            self._waiting.remove(generation)
            return
        slot = next(slot for slot in self._slots if slot.generation is generation)
        self._release(slot)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Texts that have a slot."""
        return self._n_growing + len(self._reading)

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self.n_running

    # -- a step --------------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def step(self) -> list[Generation]:
        """Those that got tokens or ended, each once."""
        self.counts.steps += 1
        advanced = dict.fromkeys(self._read_prompts())
        advanced.update(dict.fromkeys(self._grow()))
        return list(advanced)

    def _admit(self) -> None:
        """Give the next request a slot, once the one before it has been read: they may begin alike."""
        if self._reading or not self._waiting or self.n_running == len(self._slots):
            return
        request = self._waiting[0].request
        planned = min(len(request.prompt) + request.max_new_tokens, self.length)
        regime = rotation_regime(self.model.config, planned)
        if self.n_running and regime != rotation_regime(self.model.config, self._cache.longest):
            return  # its positions turn otherwise than those of the others: after them
        self._cache.longest = planned
        self._reading.append(self._take_slot(self._waiting.popleft(), regime))

    def _take_slot(self, generation: Generation, regime: int | None) -> _Slot:
        request = generation.request
        context = list(request.prompt[-self.length :])
        best, shared = self._alike(context, regime) if not request.prompt_odds else (None, 0)
        free = [slot for slot in self._slots if slot.generation is None]
        if best is not None and best.generation is None and len(best.ids) <= 2 * shared:
            slot = best
        else:
            slot = min(free, key=lambda slot: slot.last_used)
            if best is not None and best is not slot and shared >= _WORTH_COPYING:
                self._cache.copy(best.row, slot.row, shared)
            elif best is not slot:
                shared = 0
        slot.ids = context[:shared]
        slot.regime = regime
        slot.generation = generation
        slot.context = context
        slot.uniform.clear()
        seed = secrets.randbits(62) if request.seed is None else request.seed
        slot.generator.manual_seed(self.model.agreed([seed], at_most=1)[0])
        generation.n_reused = shared
        self.counts.reused += shared
        return slot

    def _alike(self, context: list[int], regime: int | None) -> tuple[_Slot | None, int]:
        """The slot whose cache begins most like the context, and how many tokens of it can be taken over."""
        found = max(self._slots, key=lambda slot: self._shared(slot, context, regime))
        shared = self._shared(found, context, regime)
        return (found, shared) if shared else (None, 0)

    def _shared(self, slot: _Slot, context: list[int], regime: int | None) -> int:
        """At least one token is left: its logits are wanted."""
        if slot.regime != regime:
            return 0
        most = min(len(slot.ids), len(context) - 1)
        pairs = enumerate(zip(slot.ids[:most], context, strict=False))
        shared = next((place for place, (one, other) in pairs if one != other), most)
        return shared if self._cache.rewinds or shared == len(slot.ids) else 0

    def _read_prompts(self) -> list[Generation]:
        advanced = []
        budget = self._prompt_chunk
        while budget > 0:
            self._admit()
            if not self._reading:
                break
            slot = self._reading[0]
            tokens = slot.context[len(slot.ids) : len(slot.ids) + budget]
            budget -= len(tokens)
            logits = self._read(slot, tokens)
            if len(slot.ids) < len(slot.context):
                continue
            self._reading.pop(0)
            self._swap(slot, self._slots[self._n_growing])
            self._n_growing += 1
            assert slot.generation is not None
            advanced.append(slot.generation)
            request = slot.generation.request
            if request.max_new_tokens == 0:
                self._end(slot, "length")
            elif len(slot.context) >= self.length and not request.slides:
                self._end(slot, "context")
            else:
                self._append(slot, self._draw([slot], logits)[0])
        return advanced

    def _read(self, slot: _Slot, tokens: list[int]) -> Tensor:
        """Puts tokens into the cache -> the logits behind the last one, (1, V)."""
        generation = slot.generation
        assert generation is not None
        wants_odds = generation.request.prompt_odds and not generation.new
        at = len(slot.ids)

        def head(hidden: Tensor, projection: Projection) -> Tensor:
            if wants_odds:
                targets = slot.context[at + 1 : at + 1 + len(tokens)]
                generation.prompt_odds.extend(self._odds_of(hidden[0], targets, projection, generation.request))
            return projection(hidden[:, -1])

        self._cache.select(slot.row, [at])
        ids = torch.tensor([tokens], device=self._cache.device)
        logits = self.model(ids, cache=self._cache, head=head)
        slot.ids += tokens
        self.counts.prompt += len(tokens)
        return logits[:, : self.model.config.vocab_size].float()

    def _odds_of(
        self, hidden: Tensor, targets: Sequence[int], projection: Projection, request: Request
    ) -> Iterator[TokenOdds]:
        """hidden (T, dim): of each of the first len(targets) what it makes of its target."""
        for first in range(0, len(targets), 64):
            some = targets[first : first + 64]
            logits = projection(hidden[first : first + len(some)])[:, : self.model.config.vocab_size]
            yield from odds(logits.float(), some, request.n_alternatives or 0)

    def _grow(self) -> list[Generation]:
        slots = self._slots[: self._n_growing]
        if not slots:
            return []
        advanced = [slot.generation for slot in slots if slot.generation is not None]
        room = self.length - max(len(slot.context) for slot in slots)  # where the longest row's padding lies
        guesses = [self._guess(slot, room) for slot in slots]
        logits = self._forward(slots, guesses)
        for slot, guessed in zip(slots, guesses, strict=True):  # before any slot changes its row
            slot.ids += [slot.context[-1], *guessed]
        if not any(guesses):
            for slot, token in zip(slots, self._draw(slots, logits[:, 0]), strict=True):
                self._append(slot, token)
            return advanced
        for place, (slot, guessed) in enumerate(zip(slots, guesses, strict=True)):
            self._check_guesses(slot, guessed, logits[place])
        return advanced

    def _forward(self, slots: list[_Slot], guesses: list[list[int]]) -> Tensor:
        """One more token a text, and behind it what is guessed -> logits (B, T, V)."""
        longest = 1 + max(map(len, guesses))
        if longest == 1:
            return self.decoding.step([slot.context[-1] for slot in slots], [len(slot.ids) for slot in slots])[:, None]
        rows = [[slot.context[-1], *guessed] for slot, guessed in zip(slots, guesses, strict=True)]
        self._cache.select(0, [len(slot.ids) for slot in slots])
        self._cache.expect([len(row) for row in rows])
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self._cache.device)
        return self.model(ids, cache=self._cache)[..., : self.model.config.vocab_size].float()

    def _guess(self, slot: _Slot, room: int) -> list[int]:
        assert slot.generation is not None
        request = slot.generation.request
        if request.drafter is None:
            return []
        most = min(request.n_guesses, request.max_new_tokens - len(slot.generation.new) - 1)
        most = min(most, room, self.length - len(slot.context) - 1)
        if most <= 0:
            return []
        guessed = request.drafter.guess(slot.context, slot.generation, slot.numbers(most))[:most]
        guessed = self.model.agreed(guessed, at_most=most)
        slot.generation.n_guessed += len(guessed)
        return guessed

    def _check_guesses(self, slot: _Slot, guessed: list[int], logits: Tensor) -> None:
        """logits (T, V): draw as without guesses, as far as they are what was drawn."""
        generation = slot.generation
        assert generation is not None
        n_held = len(slot.ids) - len(guessed)  # without guesses
        for place, guess in enumerate([*guessed, -1]):
            token = self._draw([slot], logits[place : place + 1])[0]
            self._append(slot, token)
            generation.n_guessed_right += token == guess
            if slot.generation is not generation or not slot.ids or token != guess:
                break
            n_held += 1
        del slot.ids[n_held:]

    # -- tokens --------------------------------------------------------------------------------------------------------
    def _draw(self, slots: list[_Slot], logits: Tensor) -> list[int]:
        """The next token of each. logits (B, V) fp32, changed."""
        drawn = [0] * len(slots)
        groups: dict[object, list[int]] = {}
        plain: dict[int, Tensor] = {}
        for place, slot in enumerate(slots):
            assert slot.generation is not None
            request = slot.generation.request
            if request.n_alternatives is not None:
                plain[place] = logits[place].clone()
            if request.sampling.changes_logits:
                change_logits(logits[place], request.sampling, request.prompt, slot.generation.new)
            if request.constraint is not None:
                logits[place].masked_fill_(~request.constraint.allowed().to(logits.device), -torch.inf)
            groups.setdefault(request.sampling.cut, []).append(place)
        for places in groups.values():
            own = logits if len(places) == len(slots) else logits[places]
            generation = slots[places[0]].generation
            assert generation is not None
            uniform = [self._next_number(slots[place]) for place in places]
            for place, token in zip(places, draw_tokens(own, generation.request.sampling, uniform), strict=True):
                drawn[place] = token
        drawn = self.model.agreed(drawn, at_most=len(drawn))
        for place, before in plain.items():
            generation = slots[place].generation
            assert generation is not None
            generation.odds.extend(odds(before[None], [drawn[place]], generation.request.n_alternatives or 0))
        return drawn

    def _next_number(self, slot: _Slot) -> float:
        number = slot.numbers(1)[0]
        slot.uniform.popleft()
        return number

    def _append(self, slot: _Slot, token: int) -> None:
        generation = slot.generation
        assert generation is not None
        request = generation.request
        if token in request.stop_ids:
            del generation.odds[len(generation.new) :]
            self._end(slot, "stop")
            return
        generation.new.append(token)
        slot.context.append(token)
        self.counts.new += 1
        if request.constraint is not None:
            request.constraint.accept(token)
        if request.constraint is not None and request.constraint.is_whole:
            self._end(slot, "stop")
        elif len(generation.new) == request.max_new_tokens:
            self._end(slot, "length")
        elif len(slot.context) >= self.length:
            self._slide(slot) if request.slides else self._end(slot, "context")

    def _slide(self, slot: _Slot) -> None:
        """Go on with the last half of the context, which is read anew: each token is at another position then."""
        self._n_growing -= 1
        self._swap(slot, self._slots[self._n_growing])
        slot.context = slot.context[-max(1, self.length // 2) :]
        slot.ids = []
        self._reading.append(slot)

    def _end(self, slot: _Slot, ended: Ended) -> None:
        assert slot.generation is not None
        slot.generation.ended = ended
        self._release(slot)

    # -- slots ---------------------------------------------------------------------------------------------------------
    def _release(self, slot: _Slot) -> None:
        if slot in self._reading:
            self._reading.remove(slot)
        else:
            self._n_growing -= 1
            self._swap(slot, self._slots[self._n_growing])
        slot.generation = None
        slot.last_used = self.counts.steps

    def _swap(self, one: _Slot, other: _Slot) -> None:
        """Let two slots change rows."""
        if one is other:
            return
        self._cache.swap(one.row, other.row, max(len(one.ids), len(other.ids)))
        row = one.row
        one.row = other.row
        other.row = row
        self._slots[one.row] = one
        self._slots[other.row] = other


def odds(logits: Tensor, tokens: Sequence[int], n_likeliest: int) -> list[TokenOdds]:
    """logits (T, V) fp32: what each row makes of its token, and of the likeliest ones."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = torch.topk(logprobs, n_likeliest) if n_likeliest else (logprobs[:, :0], logprobs[:, :0].long())
    return [
        TokenOdds(token, own, tuple(zip(likely, others, strict=True)))
        for token, own, likely, others in zip(tokens, chosen, ids.tolist(), values.tolist(), strict=True)
    ]
