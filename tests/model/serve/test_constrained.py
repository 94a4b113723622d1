"""Constrained texts: whatever a model would like to write, what it writes fits; and what fits may be written."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.constrained import GrammarConstraint, constraint_for
from launchyard.model.serve.engine import Engine
from launchyard.model.serve.generate import generate, generate_all
from launchyard.model.serve.requests import Generation, Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.text.tokenizer import Tokenizer
from tests.support.tiny_models import byte_tokenizer, llama, random_model, word_tokenizer

V = 320  # more than the tokenizer has
ENDS = frozenset({0, 310})  # a special token, and one that the tokenizer does not know

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "boolean"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: dict[str, Any] = {
    "flat": PERSON,
    "nested": {
        "type": "object",
        "properties": {"who": PERSON, "where": {"type": "object", "properties": {"x": {"type": "number"}}}},
        "required": ["who", "where"],
    },
    "recursive": TREE,
    "array": {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 2},
    "enum": {"enum": ["größe", 3, None, True, {"a": ["ü"]}]},
    "const": {"const": {"städte": ["北京", "Zürich"], "n": -1.5}},
    "unicode names": {"type": "object", "properties": {"naïve 😀": {"type": "null"}}, "required": ["naïve 😀"]},
    "numbers": {
        "type": "array",
        "prefixItems": [
            {"type": "integer", "multipleOf": 7},
            {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2},
        ],
        "items": False,
        "minItems": 2,
    },
    "either": {"anyOf": [{"type": "string", "minLength": 2, "maxLength": 4}, {"type": "integer"}, {"type": "null"}]},
    "pattern": {"type": "object", "properties": {"id": {"type": "string", "pattern": "^[a-c]{2}-[0-9]+$"}},
                "required": ["id"], "additionalProperties": False},
    "formats": {"type": "object", "properties": {"day": {"type": "string", "format": "date"},
                "u": {"type": "string", "format": "uuid"}}, "required": ["day", "u"], "additionalProperties": False},
    "map": {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "boolean"}}, "additionalProperties": False,
            "minProperties": 1},
    "all of": {"allOf": [PERSON, {"type": "object", "required": ["tags"]}]},
    "anything": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(byte_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"))


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model(llama(vocab_size=V, padded_vocab_size=V, max_seq_len=1024))


def json_schema(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def request(
    tokenizer: Tokenizer, response_format: dict[str, Any], seed: int = 0, *, most: int = 600, **options: Any
) -> Request:
    """A random model writes on and on; it is made to like quotes, commas and brackets that close."""
    closing = {token: 3.0 for letter in '"}],' for token in tokenizer.encode(letter)}
    temperature = options.pop("temperature", (0.3, 1.0, 2.0)[seed % 3])
    options = {"logit_bias": closing, **options}
    return Request(
        [5, 6, 7 + seed],
        most,
        Sampling(temperature=temperature, **options),
        ENDS,
        seed,
        constraint=constraint_for(response_format, tokenizer, V, ENDS),
    )


def text_of(tokenizer: Tokenizer, generation: Generation) -> str:
    return tokenizer.decode(generation.new, skip_special=False)


def may_write(constraint: GrammarConstraint, ids: Sequence[int]) -> bool:
    """Whether a text of these ids may be written, and may end there."""
    for token in ids:
        if constraint.is_whole or not constraint.allowed()[token]:
            return False
        constraint.accept(token)
    return constraint.is_whole or bool(constraint.allowed()[[*ENDS]].all())


# -- what is written ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_whatever_is_drawn_fits_the_schema(model: Transformer, tokenizer: Tokenizer, schema: Any) -> None:
    texts = generate_all(model, [request(tokenizer, json_schema(schema), seed) for seed in range(8)])
    whole = [text_of(tokenizer, text) for text in texts if text.ended == "stop"]
    assert len(whole) >= 6, "too few texts came to an end"
    for text in whole:
        jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)


def test_the_likeliest_tokens_fit_too(model: Transformer, tokenizer: Tokenizer) -> None:
    (text,) = generate_all(model, [request(tokenizer, json_schema(PERSON), temperature=0.0)])
    assert text.ended == "stop"
    jsonschema.validate(json.loads(text_of(tokenizer, text)), PERSON)


def test_any_object_is_an_object(model: Transformer, tokenizer: Tokenizer) -> None:
    texts = generate_all(model, [request(tokenizer, {"type": "json_object"}, seed) for seed in range(8)])
    whole = [json.loads(text_of(tokenizer, text)) for text in texts if text.ended == "stop"]
    assert len(whole) >= 6
    assert all(isinstance(value, dict) for value in whole)


@pytest.mark.parametrize("pattern", [r"[a-z]{2,5}@[a-z]+\.(de|org)", r"(\+|-)?\d{1,3}/é*", "^a\nb{1,2}$"])
def test_a_regex_matches_the_whole_text(model: Transformer, tokenizer: Tokenizer, pattern: str) -> None:
    texts = generate_all(
        model, [request(tokenizer, {"type": "regex", "pattern": pattern}, n, most=200) for n in range(8)]
    )
    whole = [text_of(tokenizer, text) for text in texts if text.ended == "stop"]
    assert len(whole) >= 6
    assert [text for text in whole if not re.fullmatch(pattern, text)] == []


def test_one_of_the_choices_is_written_and_each_can_be(model: Transformer, tokenizer: Tokenizer) -> None:
    choices = ["yes", "no", 'né"e\\ \x01\n', "you"]
    made = [request(tokenizer, {"type": "choice", "choices": choices}, seed, temperature=5.0) for seed in range(40)]
    texts = generate_all(model, made)
    assert {text_of(tokenizer, text) for text in texts} == set(choices)
    assert {text.ended for text in texts} == {"stop"}


def test_a_grammar_rules_the_text(model: Transformer, tokenizer: Tokenizer) -> None:
    grammar = 'start: sum\nsum: NUMBER ("+" NUMBER)* "="\nNUMBER: /[1-9][0-9]?/'
    texts = generate_all(model, [request(tokenizer, {"type": "grammar", "grammar": grammar}, n) for n in range(4)])
    whole = [text_of(tokenizer, text) for text in texts if text.ended == "stop"]
    assert whole
    assert all(re.fullmatch(r"[1-9][0-9]?(\+[1-9][0-9]?)*=", text) for text in whole)


def test_a_text_that_is_cut_says_so(model: Transformer, tokenizer: Tokenizer) -> None:
    (text,) = generate_all(model, [request(tokenizer, json_schema(PERSON), most=4)])
    assert (text.ended, len(text.new)) == ("length", 4)


def test_text_format_holds_nothing(tokenizer: Tokenizer) -> None:
    assert constraint_for({"type": "text"}, tokenizer, V, ENDS) is None


# -- beside others -----------------------------------------------------------------------------------------------------
def test_neighbours_do_not_disturb_each_other(model: Transformer, tokenizer: Tokenizer) -> None:
    formats: list[dict[str, Any]] = [
        json_schema(PERSON), {"type": "text"}, {"type": "json_object"}, {"type": "regex", "pattern": "[a-f]{30}"},
        {"type": "choice", "choices": ["the cat", "the dog"]}, {"type": "text"}, json_schema(TREE),
    ]  # fmt: skip

    def asked() -> list[Request]:
        return [request(tokenizer, each, seed, most=60) for seed, each in enumerate(formats)]

    alone = [list(generate(model, each)) for each in asked()]
    engine = Engine(model, n_slots=3, length=128, prompt_chunk=2)
    together = [engine.add(each) for each in asked()]
    while not engine.is_idle:
        engine.step()
    assert [text.new for text in together] == alone


def test_guesses_change_nothing(model: Transformer, tokenizer: Tokenizer) -> None:
    class Guesser:
        """Right sometimes: it knows the text; but not where the third token of four is wrong."""

        def __init__(self, new: list[int]) -> None:
            self._new = new

        def guess(self, ids: Sequence[int], sampling: Sampling, uniform: Sequence[float]) -> list[int]:
            at = len(ids) - 3
            return [token if n != 2 else 1 for n, token in enumerate(self._new[at : at + len(uniform)])]

    plain = request(tokenizer, json_schema(PERSON))
    new = list(generate(model, plain))
    guessed = Request(plain.prompt, plain.max_new_tokens, plain.sampling, ENDS, plain.seed, drafter=Guesser(new),
                      constraint=constraint_for(json_schema(PERSON), tokenizer, V, ENDS))  # fmt: skip
    (text,) = generate_all(model, [guessed])
    assert (text.new, text.ended) == (new, "stop")
    assert text.n_guessed_right > 0


def test_a_copy_goes_its_own_way(tokenizer: Tokenizer) -> None:
    first = constraint_for({"type": "choice", "choices": ["ab", "ac"]}, tokenizer, V, ENDS)
    assert first is not None
    first.accept(*tokenizer.encode("a"))
    second = first.copy()
    (b,) = tokenizer.encode("b")
    second.accept(b)
    assert second.is_whole
    assert not first.is_whole
    assert first.allowed().nonzero()[:, 0].tolist() == sorted(tokenizer.encode("bc"))


def test_a_constraint_may_go_to_another_thread(tokenizer: Tokenizer) -> None:
    constraint = constraint_for(json_schema(PERSON), tokenizer, V, ENDS)
    assert constraint is not None
    found: list[bool] = []
    ids = tokenizer.encode('{"name": "x", "age": 3}')
    thread = threading.Thread(target=lambda: found.append(may_write(constraint, ids)))
    thread.start()
    thread.join()
    assert found == [True]


# -- what may be written -----------------------------------------------------------------------------------------------
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("aé ", max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(value=st.dictionaries(st.sampled_from("abc"), VALUES), indent=st.sampled_from([None, 1, 2, 4]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_object_may_be_written(tokenizer: Tokenizer, value: dict[str, Any], indent: int | None) -> None:
    for ascii_only in (False, True) if json.dumps(value).isascii() and "\\u" not in json.dumps(value) else (False,):
        text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
        constraint = constraint_for({"type": "json_object"}, tokenizer, V, ENDS)
        assert constraint is not None
        assert may_write(constraint, tokenizer.encode(text)), text


def test_blanks_end_though_a_model_loves_them(model: Transformer, tokenizer: Tokenizer) -> None:
    blanks = {
        token: 60.0 for token in range(tokenizer.vocab_size) if not tokenizer.token_bytes(token).strip(b" \n\t\r")
    }
    assert len(blanks) >= 4
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    (text,) = generate_all(model, [request(tokenizer, json_schema(schema), logit_bias=blanks)])
    written = text_of(tokenizer, text)
    assert text.ended == "stop"
    assert json.loads(written)["a"] in (True, False)
    assert max(map(len, re.findall(r"\s+", written))) <= 21


def test_ends_come_where_the_text_may_end_and_nowhere_else(tokenizer: Tokenizer) -> None:
    constraint = constraint_for({"type": "regex", "pattern": "a(.|\n)*b"}, tokenizer, V, {0})
    assert constraint is not None
    for letter, may_end in (("a", False), ("x", False), ("b", True), ("c", False)):
        (token,) = tokenizer.encode(letter)
        constraint.accept(token)
        assert bool(constraint.allowed()[0]) is may_end
        assert not constraint.is_whole
    assert constraint.allowed().shape == (V,)
    assert not constraint.allowed()[tokenizer.vocab_size :].any()


def test_an_end_token_of_letters_ends_no_string(tmp_path: Path) -> None:
    """As in tokenizers that have theirs as an added token that is not special."""
    import tokenizers

    path = byte_tokenizer(tmp_path / "tokenizer.json")
    raw = tokenizers.Tokenizer.from_file(path)
    raw.add_tokens(["<end>"])
    raw.save(path)
    tokenizer = Tokenizer.load(path)
    (end,) = tokenizer.encode("<end>")
    for stop_ids, may_come in (({end}, False), (set[int](), True)):
        constraint = constraint_for({"type": "json_object"}, tokenizer, V, stop_ids)
        assert constraint is not None
        for token in tokenizer.encode('{"a'):
            constraint.accept(token)
        assert bool(constraint.allowed()[end]) is may_come


def test_an_end_token_that_is_text_may_be_written_as_text(tokenizer: Tokenizer) -> None:
    (brace,) = tokenizer.encode("}")
    constraint = constraint_for({"type": "json_object"}, tokenizer, V, {0, brace})
    assert constraint is not None
    constraint.accept(*tokenizer.encode("{"))
    assert constraint.allowed()[brace]
    assert not constraint.allowed()[0]


# -- what is refused ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": {"type": "integer"}}, "contains"),
        ({"if": {"type": "string"}, "then": {}}, "if"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"properties": {"a": {"unevaluatedProperties": False}}}, "unevaluatedProperties"),
        ({"type": "string", "format": "zip"}, "format: zip"),
        ({"type": "string", "pattern": "(?=a)b"}, "pattern"),
        ({"type": "string", "pattern": "("}, "pattern"),
        ({"$ref": "#/$defs/x"}, r"\$ref"),
        ({"$ref": "http://example.com/x"}, r"\$ref"),
        ({"type": "number", "multipleOf": 0}, "multipleOf"),
        ({"type": "text"}, "type: text"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"enum": []}, "anyOf is empty"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"items": {"type": "object", "minProperties": 2}}, r"schema\.items .*minProperties is 2"),
        ({"properties": {"a": {}, "b": {}}, "maxProperties": 1, "required": ["b"]}, "maxProperties"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "not"),
        ({"$ref": "#"}, "nothing may begin it"),
        (False, "must be an object"),
        ([], "must be an object"),
    ],
)
def test_a_schema_that_cannot_be_honoured_is_refused_by_its_keyword(
    tokenizer: Tokenizer, schema: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        constraint_for(json_schema(schema), tokenizer, V, ENDS)


@pytest.mark.parametrize(
    ("response_format", "said"),
    [
        ({}, "response_format.type is None; use text, json_object"),
        ({"type": "xml"}, "response_format.type is 'xml'"),
        ({"type": "text", "schema": {}}, "response_format.schema is not known; it takes type"),
        ({"type": "json_schema"}, "response_format.json_schema is missing"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "json_schema.schema is missing"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "shema": {}}}, "json_schema.shema is not known"),
        ({"type": "json_object", "schema": {"type": "array"}}, "no schema of an object"),
        ({"type": "regex", "pattern": ""}, "pattern is no text"),
        ({"type": "regex", "pattern": "(a"}, "unclosed group"),
        ({"type": "choice", "choices": []}, "at least one"),
        ({"type": "choice", "choices": ["a", ""]}, "choices holds ''"),
        ({"type": "grammar", "grammar": "start: foo"}, 'unknown name: "foo"'),
        ({"type": "grammar", "grammar": 'start: start "a"'}, "nothing may begin it"),
    ],
)
def test_a_format_that_is_none_is_refused(tokenizer: Tokenizer, response_format: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        constraint_for(response_format, tokenizer, V, ENDS)


def test_a_tokenizer_that_cannot_write_every_character_is_refused(tmp_path: Path) -> None:
    words = Tokenizer.load(word_tokenizer(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="no token for '!' alone"):
        constraint_for({"type": "json_object"}, words, V, ENDS)
