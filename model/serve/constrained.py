"""What a text must look like, as a mask over the tokens: a JSON schema, any JSON object, a regex, choices, a grammar.

llguidance does the work; it is loaded with the first constraint. Knows no model and no HTTP.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from launchyard.model.text.companions import Json
from launchyard.model.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_LOG = logging.getLogger(__name__)

# Where JSON allows blanks: none, a space, or a new line and its indentation. Without a bound a model can write blanks
# for ever.
_BLANKS = r" ?|\n( {0,20}|\t{0,5})"
_JSON_OPTIONS: Json = {"whitespace_pattern": _BLANKS, "coerce_one_of": False, "lenient": False}
# Of a response format: the keys beside `type`, and whether they must be there.
_KINDS: Mapping[str, Mapping[str, bool]] = {
    "text": {},
    "json_object": {"schema": False},
    "json_schema": {"json_schema": True},
    "regex": {"pattern": True},
    "choice": {"choices": True},
    "grammar": {"grammar": True},
}
_SCHEMA_KEYS = {"name", "description", "schema", "strict"}
# Words of what llguidance says where it leaves out the name of the keyword that is at fault.
_AT_FAULT = {
    "regex parse error": "pattern",
    "invalid regex": "pattern",
    "Pointer": "$ref",
    "Resource": "$ref",
    "multiple of": "multipleOf",
    "ormat": "format",
    "Invalid type": "type",
    "min/maxProperties": "minProperties or maxProperties",
    "patternProperty": "patternProperties",
}
_VALUES = ("const", "enum", "default", "examples")  # keywords that hold values, no schemas


def constraint_for(
    response_format: Mapping[str, object], tokenizer: Tokenizer, vocab_size: int, stop_ids: Collection[int]
) -> GrammarConstraint | None:
    """What one text must look like; None if it may be any. For each text one of its own: see `copy`.

    By its `type`: text; json_object, perhaps with a `schema`; json_schema with {"json_schema": {"schema": …}} as OpenAI
    has it; regex with a `pattern` of the whole text; choice with `choices`, of which it is one; grammar with a
    `grammar` in llguidance's dialect of Lark. vocab_size: that of the model. ValueError for a format that is none, and
    for a schema that cannot be honoured, with the keyword.
    """
    grammar = grammar_of(response_format)
    return None if grammar is None else GrammarConstraint(grammar, tokenizer, vocab_size, stop_ids)


def grammar_of(response_format: Mapping[str, object]) -> str | None:
    """The same as a Lark grammar; all but one of type grammar have a single rule, `start`."""
    kind = response_format.get("type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"response_format.type is {kind!r}; use {', '.join(_KINDS)}")
    _check_keys(response_format, {"type": True, **_KINDS[kind]}, "response_format")
    if kind == "text":
        return None
    if kind == "grammar":
        return _text(response_format["grammar"], "response_format.grammar")
    return f"start: {_rule(kind, response_format)}"


def _rule(kind: str, given: Mapping[str, object]) -> str:
    if kind == "regex":
        return regex_rule(_text(given["pattern"], "response_format.pattern"))
    if kind == "choice":
        return choice_rule(given["choices"])
    if kind == "json_object":
        schema = given.get("schema", {})
        if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
            raise ValueError("response_format.schema is no schema of an object; take the type json_schema")
        return schema_rule({"type": "object", **schema}, "response_format.schema")
    wrapped = given["json_schema"]
    if not isinstance(wrapped, Mapping):
        raise ValueError('response_format.json_schema is no object; it has a "name" and a "schema"')
    _check_keys(wrapped, {key: key == "schema" for key in _SCHEMA_KEYS}, "response_format.json_schema")
    return schema_rule(wrapped["schema"], "response_format.json_schema.schema")


def _check_keys(given: Mapping[str, object], known: Mapping[str, bool], where: str) -> None:
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(f"{where}.{unknown[0]} is not known; it takes {', '.join(sorted(known))}")
    if missing := [key for key, needed in known.items() if needed and key not in given]:
        raise ValueError(f"{where}.{missing[0]} is missing")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} is no text")
    return value


# -- rules of a Lark grammar -----------------------------------------------------------------------------------------
def schema_rule(schema: object, where: str) -> str:
    """The right side of a rule for JSON of this schema. ValueError for one that cannot be honoured."""
    from llguidance import LLMatcher

    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise ValueError(f"{where} is no JSON schema; it must be an object")
    _refuse_open_counts(schema, where)
    ours: Json = {**schema, "x-guidance": _JSON_OPTIONS}
    grammar = LLMatcher.grammar_from_json_schema(ours)
    is_refused, said = LLMatcher.validate_grammar_with_warnings(grammar)
    if is_refused:
        raise ValueError(f"{where} cannot be honoured: {_named(_first_lines(said[0]))}")
    return "%json " + json.dumps(ours)


def _refuse_open_counts(schema: object, where: str) -> None:
    """Names of properties that are not listed may come twice, and count once."""
    if isinstance(schema, list):
        for place, part in enumerate(schema):
            _refuse_open_counts(part, f"{where}.{place}")
    if not isinstance(schema, Mapping):
        return
    least = schema.get("minProperties")
    required = schema.get("required")
    if isinstance(least, int) and least > max(1, len(required) if isinstance(required, list) else 0):
        raise ValueError(f"{where} cannot be honoured: minProperties is {least}; name them in required, or ask for 1")
    for key, value in schema.items():
        if key not in _VALUES:
            _refuse_open_counts(value, f"{where}.{key}")


def _named(said: str) -> str:
    """What llguidance says, with the keyword that it is about."""
    keyword = next((keyword for words, keyword in _AT_FAULT.items() if words in said), "")
    return said if keyword in said else f"{keyword}: {said}"


def _first_lines(said: str) -> str:
    """Without the state of the parser, which fills pages."""
    return " ".join(said.partition("<state>")[0].split())[:300]


def regex_rule(pattern: str) -> str:
    """For a text that matches as a whole, by the rules of Rust's regex: no look-around, no back-references."""
    from llguidance import regex_to_lark

    return f"/{regex_to_lark(pattern, use_ascii='d')}/"  # no digits but 0 to 9


def choice_rule(choices: object) -> str:
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise ValueError("choices must be a list of texts, at least one")
    if strange := [choice for choice in choices if not isinstance(choice, str) or not choice]:
        raise ValueError(f"choices holds {strange[0]!r}; each must be a text that is not empty")
    return " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


# -- one text --------------------------------------------------------------------------------------------------------
class GrammarConstraint:
    """A Constraint of model/serve/requests.py by a Lark grammar. ValueError for a grammar that is none.

    Where the grammar lets the text end, each of `stop_ids` may come; none that is a token of its own kind comes before.
    `broken`: why the text could not go on as the grammar wants, which ends it, too; None as long as all is well.
    """

    def __init__(self, grammar: str, tokenizer: Tokenizer, vocab_size: int, stop_ids: Collection[int]) -> None:
        added = tokenizer.raw.get_added_tokens_decoder()
        ends = sorted(token for token in stop_ids if 0 <= token < vocab_size)
        self._ends = torch.tensor(ends, dtype=torch.int64)
        self._never_inside = torch.tensor([token for token in ends if token in added], dtype=torch.int64)
        self._vocab_size = vocab_size
        self._matcher = _matcher(grammar, _ll_tokenizer(tokenizer, vocab_size))
        self.broken: str | None = None
        self._allowed = self._next()
        if self.broken is not None:
            raise ValueError("no text fits this format: nothing may begin it")

    def allowed(self) -> Tensor:
        return self._allowed

    def accept(self, token: int) -> None:
        if self._matcher.consume_token(token):
            self._allowed = self._next()
        else:
            self.broken = _first_lines(self._matcher.get_error())
        if self.broken is not None:
            _LOG.error("a constrained text ends before it is whole: %s", self.broken)

    @property
    def is_whole(self) -> bool:
        return self.broken is not None or self._matcher.is_stopped()

    def copy(self) -> GrammarConstraint:
        """For another text, from here on; far cheaper than a new one."""
        other = object.__new__(GrammarConstraint)
        other.__dict__.update(self.__dict__)
        other._matcher = self._matcher.deep_copy()
        return other

    def _next(self) -> Tensor:
        """(V,) bool: what may come next."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(packed, count=self._vocab_size, bitorder="little")
        allowed = torch.from_numpy(bits).view(torch.bool)
        allowed[self._never_inside] = False
        if self._matcher.is_accepting():
            allowed[self._ends] = True
        if self._matcher.is_error():
            self.broken = _first_lines(self._matcher.get_error())
        elif not self._matcher.is_accepting() and not allowed.any():
            self.broken = "the vocabulary has no token that could come next"
        return allowed


def _matcher(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
    if matcher.is_error():
        raise ValueError(f"the grammar cannot be read: {_first_lines(matcher.get_error())}")
    return matcher


# -- the vocabulary --------------------------------------------------------------------------------------------------
_TOKENIZERS: WeakKeyDictionary[Tokenizer, dict[int, LLTokenizer]] = WeakKeyDictionary()


def _ll_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> LLTokenizer:
    """One for each tokenizer and size: it takes seconds where there are many tokens."""
    from llguidance import LLTokenizer, TokenizerWrapper

    made = _TOKENIZERS.setdefault(tokenizer, {})
    if vocab_size not in made:
        made[vocab_size] = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, vocab_size)))
    return made[vocab_size]


class _Vocabulary:
    """The bytes of every token, as llguidance wants them.

    Its end is a token that no model has, so that the real ones, of which there may be several, are free.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.raw.get_added_tokens_decoder()
        special = {token for token, one in added.items() if one.special and token < vocab_size}
        self.special_token_ids = sorted(special)
        own = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        alone = {one[0] for token, one in enumerate(own) if len(one) == 1 and token not in special}
        if missing := [chr(byte) for byte in range(32, 127) if byte not in alone]:
            raise ValueError(
                f"{tokenizer.path} has no token for {missing[0]!r} alone, so its texts cannot be held to a format"
            )
        self.tokens = [*own, b"<end>"]
        self.eos_token_id = vocab_size

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text.decode() if isinstance(text, bytes) else text, special=False)
