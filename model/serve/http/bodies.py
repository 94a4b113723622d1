"""Bodies of requests: every field that is accepted is honoured, every other one is refused by its name.

A field of null counts as absent. Knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launchyard.model.serve.http.errors import ApiError
from launchyard.model.text.companions import Json

# Fields of OpenAI that say nothing about the answer; those of `_NEUTRAL` may have the value that changes nothing.
_IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key")
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "best_of": (1,),
    "use_beam_search": (False,),
}
MOST_ALTERNATIVES = 20
MOST_TEXTS = 128

Body = TypeVar("Body", bound="SamplingBody")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    include_usage: bool = False


class SamplingBody(_Strict):
    """What all routes take. top_k 0 or -1: all tokens."""

    model: str | None = Field(None, description="the model's name, as /v1/models tells it; default: the one there is")
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="0: always the likeliest token; default: that of generation_config.json, else 1"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="draw from the fewest tokens that together reach it"
    )
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="draw from the k likeliest; 0 or -1: from all")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="draw from those with this part of the likeliest's odds"
    )
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="divides logits of tokens that are in prompt or text"
    )
    presence_penalty: Annotated[float, Field(allow_inf_nan=False)] = Field(
        0.0, description="is taken from logits of tokens that are in the text"
    )
    frequency_penalty: Annotated[float, Field(allow_inf_nan=False)] = Field(
        0.0, description="the same, as often as they are in it"
    )
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, description="token id -> a number that is added to its logit"
    )
    stop: str | list[str] = Field(default_factory=list, description="the text ends before these strings")
    stop_token_ids: list[int] = Field(default_factory=list, description="further ids that end the text")
    ignore_eos: bool = Field(False, description="go on behind an end token")
    skip_special_tokens: bool = Field(True, description="leave special tokens out of the text")
    seed: int | None = Field(None, description="the same seed draws the same text, to rounding")
    structured_outputs: dict[str, object] | None = Field(
        None, description="one of json, regex, choice, grammar: what the text must fit"
    )
    stream: bool = Field(False, description="send the text as it is made")

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop


class OpenAIBody(SamplingBody):
    n: Annotated[int, Field(ge=1, le=MOST_TEXTS)] = Field(
        1, description="texts for each prompt, drawn with seed + 0, 1 …"
    )
    stream_options: StreamOptions | None = Field(None, description="include_usage: a last chunk counts the tokens")


class ChatBody(OpenAIBody):
    messages: list[Json] = Field(min_length=1, description="role and content of each turn")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="the older name of max_completion_tokens")
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="tokens of an answer at most; default: what the context has room for"
    )
    logprobs: bool = Field(False, description="tell the log-probability of each token")
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = Field(
        None, description="and of so many of the likeliest"
    )
    response_format: Json | None = Field(None, description="type: text, json_object or json_schema")
    tools: list[Json] = Field(default_factory=list, description="functions that may be called")
    tool_choice: str | Json | None = Field(None, description="none, auto, required, or one function")
    parallel_tool_calls: bool = Field(True, description="more than one call in an answer")
    add_generation_prompt: bool = Field(True, description="with the beginning of the assistant's next turn")
    continue_final_message: bool = Field(False, description="go on with the last message as it stands")


class CompletionBody(OpenAIBody):
    prompt: str | list[str] | list[int] | list[list[int]] = Field(description="text, token ids, or several of them")
    max_tokens: Annotated[int, Field(ge=0)] = Field(16, description="tokens of a text at most")
    echo: bool = Field(False, description="begin the text with the prompt")
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = Field(
        None, description="tell the log-probability of each token, and of so many of the likeliest"
    )


class PromptBody(SamplingBody):
    """Of the two simple routes."""

    prompt: str = Field(description="what the text starts with")
    max_new_tokens: Annotated[int, Field(ge=1)] = Field(128, description="tokens of the text at most")


class GenerateBody(SamplingBody):
    prompt: str = Field(description="what the text starts with")
    max_tokens: Annotated[int, Field(ge=1)] = Field(100, description="tokens of the text at most")


def read_fields(raw: bytes) -> Json:
    """The fields of a body. ApiError for what is no JSON object."""
    try:
        found = json.loads(raw, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from error
    if not isinstance(found, dict):
        raise ApiError(400, "the body is no JSON object", code="invalid_json")
    if b"\\ud" in raw.lower():
        _refuse_halves(found)
    return found


def _refuse_halves(found: Json) -> None:
    """Half a character of UTF-16, which JSON can write, is in no text."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ApiError(400, "the body holds half a surrogate pair", code="invalid_json") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def read_body(kind: type[Body], fields: Mapping[str, object]) -> Body:
    """ApiError names the field that is at fault, and what is allowed there."""
    given = {key: value for key, value in fields.items() if value is not None and key not in _IGNORED}
    for key, neutral in _NEUTRAL.items():
        if key in given and key not in kind.model_fields and given.pop(key) not in neutral:
            raise ApiError(400, f"{key} is not supported by this server; leave it out", param=key)
    try:
        body = kind.model_validate(given)
    except ValidationError as error:
        raise _refusal(error, kind) from error
    if any(not stop for stop in body.stops):
        raise ApiError(400, "a string of stop is empty", param="stop")
    return body


def _refusal(error: ValidationError, kind: type[BaseModel]) -> ApiError:
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # misspelt is more than missing
    path = ".".join(str(part) for part in first["loc"])
    name = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(kind.model_fields))
        return ApiError(400, f"{path} is no field that this server honours; it takes {known}", param=name)
    if first["type"] == "missing":
        return ApiError(400, f"the field {path} is missing", param=name)
    return ApiError(400, f"{path}: {first['msg']}", param=name)


# -- messages --------------------------------------------------------------------------------------------------------
_ROLES = ("system", "developer", "user", "assistant", "tool")
_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "refusal"}


def plain_messages(messages: Sequence[Json]) -> list[Json]:
    """As chat templates take them: text instead of parts of text, and a developer as the system."""
    return [_plain_message(message, f"messages.{place}") for place, message in enumerate(messages)]


def _plain_message(message: Json, where: str) -> Json:
    given = {key: value for key, value in message.items() if value is not None}
    role = given.get("role")
    if role not in _ROLES:
        _refuse(f"{where}.role is {role!r}; use {', '.join(_ROLES)}")
    if unknown := sorted(given.keys() - _KEYS):
        _refuse(f"{where}.{unknown[0]} is no field that this server honours; it takes {', '.join(sorted(_KEYS))}")
    if "content" not in given and not ("tool_calls" in given and role == "assistant"):
        _refuse(f"{where}.content is missing")
    content = given.get("content", "")
    given["content"] = content if isinstance(content, str) else _joined(content, f"{where}.content")
    given["role"] = "system" if role == "developer" else role
    calls = given.get("tool_calls")
    if isinstance(calls, list):
        given["tool_calls"] = [_plain_call(call, f"{where}.tool_calls") for call in calls]
    elif calls is not None:
        _refuse(f"{where}.tool_calls is no list")
    return given


def _joined(parts: object, where: str) -> str:
    if not isinstance(parts, list):
        _refuse(f"{where} is neither text nor a list of parts")
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            _refuse(f"{where} has a part of type {kind!r}; this model reads text alone")
        texts.append(part["text"])
    return "\n".join(texts)


def _plain_call(call: object, where: str) -> Json:
    """Its arguments as an object, which templates write out; OpenAI has them as text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        _refuse(f"{where}: a call needs a function with a name")
    assert isinstance(call, dict)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            _refuse(f"{where}: the arguments of {function['name']} are no JSON")
    arguments = {} if arguments is None else arguments  # of a function that takes none
    if not isinstance(arguments, dict):
        _refuse(f"{where}: the arguments of {function['name']} are no object")
    return {**call, "function": {**function, "arguments": arguments}}


def _refuse(message: str) -> NoReturn:
    raise ApiError(400, message, param="messages")
