"""Texts that end before one of some strings: the keys by which a task asks for them, and how they are written.

Knows no task. A text ends by the rules of lm-evaluation-harness, so that it is the one that `--model hf` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from launchyard.model.loaded import LoadedModel
from launchyard.model.serve.generate import engine_for
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.text.companions import GENERATION, json_companion
from launchyard.model.text.tokenizer import Tokenizer

MAX_GEN_TOKS = 256
_MAX_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first of them counts
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_KEYS = ("until", "do_sample", "max_length", *_SAMPLING, *_MAX_NAMES)
_MAX_SLOTS = 64
# Called with the texts that are done, and with those of all.
OnWritten = Callable[[int, int], None]


@dataclass(frozen=True)
class TextAsk:
    """How a task wants a text. stops: it ends before these."""

    stops: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling
    max_length: int | None = None  # of prompt and text together


def asked(keys: Mapping[str, object], companions: Mapping[str, bytes]) -> TextAsk:
    """The ask of a task's generation_kwargs: greedy unless they say otherwise, else as generation_config.json has it.

    A repetition_penalty of that file counts for greedy texts, too. ValueError for a key that nothing honours.
    """
    for key, value in keys.items():
        if key not in _KEYS and (key, value) != ("num_beams", 1):
            raise ValueError(f"generation_kwargs has {key}: {value!r}; what is honoured: {', '.join(_KEYS)}")
    until = keys.get("until") or ()
    listed = [until] if isinstance(until, str) else list(until)  # type: ignore[call-overload]
    longest = next((keys[name] for name in _MAX_NAMES if keys.get(name) is not None), MAX_GEN_TOKS)
    whole = keys.get("max_length")
    return TextAsk(
        stops=tuple(str(stop) for stop in listed if stop),
        max_new_tokens=_whole(longest),
        sampling=_sampling(keys, json_companion(companions, GENERATION)),
        max_length=None if whole is None else _whole(whole),
    )


def _whole(value: object) -> int:
    return int(str(value))


def _sampling(keys: Mapping[str, object], rules: Mapping[str, object]) -> Sampling:
    draws = keys.get("do_sample")
    if draws is None:
        draws = float(str(keys.get("temperature") or 0)) > 0
    names = _SAMPLING if draws else ("repetition_penalty",)
    given = {name: rules[name] for name in names if rules.get(name) is not None}
    given |= {name: keys[name] for name in names if keys.get(name) is not None}
    if given.get("top_k") == 0:  # their spelling of all
        del given["top_k"]
    if not draws:
        given["temperature"] = 0.0
    return Sampling(**given)  # type: ignore[arg-type]


def write_until(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    asks: Sequence[TextAsk],
    *,
    max_length: int,
    batch_tokens: int,
    seed: int | None = None,
    on_progress: OnWritten | None = None,
) -> list[str]:
    """The text behind each prompt, which is cut from the left so that the whole text has room.

    Many are written together, their caches no longer than batch_tokens. ValueError if there is no room for a prompt.
    """
    requests = [
        _request(loaded, prompt, ask, max_length, None if seed is None else seed + place)
        for place, (prompt, ask) in enumerate(zip(prompts, asks, strict=True))
    ]
    longest = max((len(request.prompt) + request.max_new_tokens for request in requests), default=1)
    n_slots = max(1, min(len(requests), batch_tokens // longest, _MAX_SLOTS))
    engine = engine_for(loaded.transformer, requests, n_slots=n_slots, graphs=loaded.graphs)
    ends = [_End(loaded.tokenizer, ask.stops) for ask in asks]
    growing = dict(zip(map(engine.add, requests), ends, strict=True))
    n_done = 0
    while not engine.is_idle:
        for generation in engine.step():
            if growing[generation].came(generation.new):
                engine.cancel(generation)
            n_done += generation.ended is not None
        if on_progress is not None:
            on_progress(n_done, len(requests))
    return [end.text() for end in ends]


def _request(loaded: LoadedModel, prompt: Sequence[int], ask: TextAsk, max_length: int, seed: int | None) -> Request:
    room = max_length - ask.max_new_tokens
    if room < 1:
        raise ValueError(
            f"a task asks for {ask.max_new_tokens} new tokens, which leaves no room for its prompt in a max_length "
            f"of {max_length}"
        )
    kept = prompt[-room:]
    n_new = ask.max_new_tokens if ask.max_length is None else ask.max_length - len(kept)
    if n_new < 1:
        raise ValueError(f"generation_kwargs has max_length {ask.max_length}, and a prompt has {len(kept)} tokens")
    eos = loaded.tokenizer.eos_id
    ends = loaded.stop_ids if eos is None else loaded.stop_ids | {eos}
    return Request(kept, min(n_new, max_length - len(kept)), ask.sampling, ends, seed)


class _End:
    """Where a text ends, looked for behind each of its tokens in the last ones, special ones written out."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        # A text may spell a stop string with other tokens than it has alone, seldom with more than two more.
        self._looked_at = {stop: len(tokenizer.encode(stop, special=False)) + 2 for stop in stops}
        self._ids: list[int] = []

    def came(self, ids: Sequence[int]) -> bool:
        """True if the text so far has ended; what is behind the end is no part of it."""
        for token in ids[len(self._ids) :]:
            self._ids.append(token)
            if any(stop in self._last(n) for stop, n in self._looked_at.items()):
                return True
        return False

    def _last(self, n: int) -> str:
        return self._tokenizer.decode(self._ids[-n:], skip_special=False)

    def text(self) -> str:
        """Cut before each stop string in turn, as theirs is."""
        text = self._tokenizer.decode(self._ids)
        for stop in self._looked_at:
            text = text.partition(stop)[0]
        return text
