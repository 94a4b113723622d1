"""From the body of a request to what the engine is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launchyard.model.loaded import LoadedModel
from launchyard.model.serve.http.bodies import SamplingBody
from launchyard.model.serve.http.errors import ApiError, too_long
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling

_FORMS = {
    "json": ("json_schema", "json_schema"),
    "regex": ("regex", "pattern"),
    "choice": ("choice", "choices"),
    "grammar": ("grammar", "grammar"),
}
_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling_of(body: SamplingBody, defaults: Mapping[str, object]) -> Sampling:
    """What the body leaves open is as in `defaults`, else as with OpenAI: temperature 1, all tokens."""
    chosen: dict[str, Any] = {
        key: defaults.get(key) if getattr(body, key) is None else getattr(body, key) for key in _DEFAULTS
    }
    try:
        return Sampling(
            temperature=1.0 if chosen["temperature"] is None else chosen["temperature"],
            top_k=chosen["top_k"] if (chosen["top_k"] or 0) > 0 else None,
            top_p=chosen["top_p"],
            min_p=chosen["min_p"] or None,
            repetition_penalty=chosen["repetition_penalty"] or 1.0,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            logit_bias={int(token): bias for token, bias in body.logit_bias.items()},
        )
    except ValueError as error:
        raise ApiError(400, str(error)) from error


def structured_form(structured: Mapping[str, object]) -> dict[str, object]:
    """The structured_outputs of vLLM as a response format. ValueError if it is none."""
    if len(structured) != 1 or not structured.keys() <= _FORMS.keys():
        raise ValueError(f"there is {', '.join(structured)}; give one of {', '.join(_FORMS)}")
    ((kind, value),) = structured.items()
    name, key = _FORMS[kind]
    return {"type": name, key: {"schema": value} if kind == "json" else value}


def room_for(ids: Sequence[int], wanted: int | None, length: int) -> int:
    """Tokens that an answer may have. ApiError if the prompt leaves none."""
    left = length - len(ids)
    if left < 1 and wanted != 0:
        raise too_long(len(ids), length)
    return left if wanted is None else min(wanted, max(left, 0))


def request_for(
    model: LoadedModel,
    body: SamplingBody,
    ids: Sequence[int],
    *,
    sampling: Sampling,
    max_new_tokens: int,
    number: int = 0,
    n_alternatives: int | None = None,
    prompt_odds: bool = False,
) -> Request:
    """Text `number` of those for one prompt."""
    stop_ids = frozenset() if body.ignore_eos else model.stop_ids
    return Request(
        prompt=ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_ids=stop_ids | frozenset(body.stop_token_ids),
        seed=None if body.seed is None else (body.seed + number) % (1 << 62),
        n_alternatives=n_alternatives,
        prompt_odds=prompt_odds,
    )
