"""Texts that must fit a JSON schema, a regular expression or a grammar: which tokens may come next, by llguidance."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from launchyard.model.serve.requests import Constraint
from launchyard.model.text.companions import Json
from launchyard.model.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# What may stand between the signs of JSON: bounded, for a model could write blanks for ever.
_BLANKS = r"[ \n]{0,12}"
_FORMATS = {
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
}  # fmt: skip  # that llguidance knows; it takes any text for the others
# Each text needs a constraint of its own.
MakeConstraint = Callable[[], Constraint]
KINDS = ("json", "regex", "choice", "grammar")


class GrammarConstraint:
    """Of one text. Between two tokens it costs some 0.1 ms."""

    def __init__(self, matcher: LLMatcher, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._shifts = torch.arange(8, dtype=torch.uint8)

    def allowed(self) -> Tensor:
        raw = bytearray(self._matcher.compute_bitmask())
        bits = torch.frombuffer(raw, dtype=torch.uint8)[:, None] >> self._shifts
        return (bits & 1).flatten()[: self._n_vocab].bool()

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"token {token} does not fit: {self._matcher.get_error()}")

    @property
    def is_whole(self) -> bool:
        return bool(self._matcher.is_stopped())


class Grammars:
    """Of one tokenizer, whose ids below `n_vocab` the model has; a text may end with `stop_ids` where it is whole."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int, stop_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab
        self._stop_ids = tuple(sorted(stop_ids))

    def of_response_format(self, wanted: Mapping[str, object]) -> MakeConstraint | None:
        """OpenAI's response_format: what makes a constraint for one text; None for text as it comes.

        ValueError names what is not honoured.
        """
        kind = wanted.get("type")
        if kind == "text":
            return None
        if kind == "json_object":
            return self.of_json({"type": "object"})
        if kind != "json_schema":
            raise ValueError(f"response_format.type is {kind!r}; use text, json_object or json_schema")
        described = wanted.get("json_schema")
        if not isinstance(described, Mapping) or not isinstance(described.get("schema"), Mapping):
            raise ValueError("response_format.json_schema needs a name and a schema")
        return self.of_json(described["schema"])

    def of_kind(self, kind: str, given: object) -> MakeConstraint:
        """One of KINDS. ValueError names what is wrong with it."""
        if kind == "json" and isinstance(given, Mapping):
            return self.of_json(given)
        if kind == "regex" and isinstance(given, str):
            return self._made(json.dumps({"grammars": [{"lark_grammar": f"start: /{_slashed(given)}/"}]}))
        if kind == "choice" and isinstance(given, list) and given and all(isinstance(one, str) for one in given):
            return self.of_lark("start: " + " | ".join(json.dumps(one, ensure_ascii=False) for one in given))
        if kind == "grammar" and isinstance(given, str):
            return self.of_lark(given)
        raise ValueError(f"{kind} is no constraint of this kind; use one of {', '.join(KINDS)}, with a value that fits")

    def of_json(self, schema: Mapping[str, object]) -> MakeConstraint:
        return self.of_lark(f"start: {json_rule(schema)}")

    def of_lark(self, grammar: str) -> MakeConstraint:
        return self._made(json.dumps({"grammars": [{"lark_grammar": grammar}]}))

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        """One of 49k takes 0.2 s."""
        from llguidance import LLTokenizer

        content: Json = json.loads(self._tokenizer.raw.to_str())
        content["truncation"] = None
        content["padding"] = None
        return LLTokenizer(json.dumps(content), n_vocab=self._n_vocab, eos_token=list(self._stop_ids) or None)

    def _made(self, grammar: str) -> MakeConstraint:
        self._matcher(grammar)  # what is wrong with it is said now
        return lambda: GrammarConstraint(self._matcher(grammar), self._n_vocab)

    def _matcher(self, grammar: str) -> LLMatcher:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"this cannot be honoured: {matcher.get_error().splitlines()[0]}")
        return matcher


def json_rule(schema: Mapping[str, object]) -> str:
    """The schema as a rule of a Lark grammar. ValueError for a format that would be ignored."""
    if unknown := sorted(_formats(schema) - _FORMATS):
        raise ValueError(f"the schema has format {unknown[0]!r}; use {', '.join(sorted(_FORMATS))}, or a pattern")
    options = {"whitespace_flexible": True, "whitespace_pattern": _BLANKS}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def _formats(schema: object) -> set[str]:
    if isinstance(schema, Mapping):
        own = {schema["format"]} if isinstance(schema.get("format"), str) and schema.get("type") == "string" else set()
        return own.union(*(_formats(value) for value in schema.values()))
    return set().union(*map(_formats, schema)) if isinstance(schema, list) else set()


def _slashed(pattern: str) -> str:
    return pattern.replace("/", r"\/")
