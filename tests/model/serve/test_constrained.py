"""Whatever a model would write: what it writes fits."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from launchyard.model.loaded import LoadedModel
from launchyard.model.serve.constrained import Grammars
from launchyard.model.serve.generate import generate_all
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.weights.load import load
from tests.model.serve.served import chat_model

SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["red", "grün", "蓝", 3, None]},
    "nested": {
        "type": "object",
        "properties": {"in": {"type": "object", "properties": {"x": {"const": "é\n"}}, "required": ["x"]}},
        "required": ["in"],
        "additionalProperties": False,
    },
    "array": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 5}, "minItems": 2, "maxItems": 4},
    "either": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 6}]},
    "number": {"type": "number", "minimum": -1, "maximum": 1},
    "pattern": {"type": "string", "pattern": "^[a-c]{2,5}$"},
    "date": {"type": "string", "format": "date"},
    "ref": {
        "$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 3,
    },
}  # fmt: skip


@cache
def model(folder: Path) -> LoadedModel:
    return load(str(chat_model(folder)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return model(tmp_path_factory.mktemp("constrained"))


def grammars(tiny: LoadedModel) -> Grammars:
    return Grammars(tiny.tokenizer, tiny.transformer.config.vocab_size, tiny.stop_ids)


def request(tiny: LoadedModel, make: Any, seed: int, n: int = 150) -> Request:
    sampling = Sampling(temperature=1.0 + seed % 3)
    constraint = None if make is None else make()
    return Request(tiny.encode("the tale"), n, sampling, tiny.stop_ids, seed, constraint=constraint)


def texts(tiny: LoadedModel, requests: list[Request]) -> list[tuple[str, str | None]]:
    return [(tiny.tokenizer.decode(each.new), each.ended) for each in generate_all(tiny.transformer, requests)]


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_ends_fits_its_schema(tiny: LoadedModel, name: str) -> None:
    make = grammars(tiny).of_json(SCHEMAS[name])
    found = texts(tiny, [request(tiny, make, seed) for seed in range(12)])
    whole = [text for text, ended in found if ended == "stop"]
    assert len(whole) > 3, found
    for text in whole:
        jsonschema.validate(json.loads(text), SCHEMAS[name], format_checker=jsonschema.FormatChecker())


def test_any_object_of_json(tiny: LoadedModel) -> None:
    make = grammars(tiny).of_response_format({"type": "json_object"})
    found = texts(tiny, [request(tiny, make, seed, 400) for seed in range(6)])
    assert any(ended == "stop" for _, ended in found)
    assert all(isinstance(json.loads(text), dict) for text, ended in found if ended == "stop")
    assert all(text.lstrip().startswith("{") for text, _ in found)
    assert grammars(tiny).of_response_format({"type": "text"}) is None


def test_regex_choice_and_grammar(tiny: LoadedModel) -> None:
    own = grammars(tiny)
    cases = [
        (own.of_kind("regex", r"[0-9]{3}/[ä-ü]+x"), lambda text: re.fullmatch(r"[0-9]{3}/[ä-ü]+x", text)),
        (own.of_kind("choice", ["yes", "no", "vielleicht ☃"]), lambda text: text in ("yes", "no", "vielleicht ☃")),
        (own.of_kind("grammar", 'start: "a" ("b" | "c"){2} "."'), lambda text: re.fullmatch(r"a[bc]{2}\.", text)),
    ]
    for make, fits in cases:
        found = texts(tiny, [request(tiny, make, seed) for seed in range(5)])
        assert all(fits(text) for text, ended in found if ended == "stop"), found
        assert any(ended == "stop" for _, ended in found)


def test_texts_with_and_without_a_constraint_do_not_disturb_each_other(tiny: LoadedModel) -> None:
    own = grammars(tiny)
    makes = [own.of_json(SCHEMAS["flat"]), None, own.of_kind("choice", ["one", "two"]), None]
    together = texts(tiny, [request(tiny, make, seed, 60) for seed, make in enumerate(makes)])
    assert together == [texts(tiny, [request(tiny, make, seed, 60)])[0] for seed, make in enumerate(makes)]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "strin"}, "Invalid type: strin"),
        ({"not": {"type": "null"}}, "not"),
        ({"type": "string", "format": "colour"}, "format 'colour'; use date"),
        ({"$ref": "#/nowhere"}, "honoured"),
    ],
)
def test_a_schema_that_cannot_be_honoured_is_refused(tiny: LoadedModel, schema: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        grammars(tiny).of_json(schema)


@pytest.mark.parametrize(
    ("kind", "given"), [("regex", "("), ("choice", []), ("choice", [1]), ("nix", "x"), ("json", 3)]
)
def test_other_constraints_are_refused_by_name(tiny: LoadedModel, kind: str, given: object) -> None:
    with pytest.raises(ValueError, match=r"honoured|is no constraint of this kind"):
        grammars(tiny).of_kind(kind, given)
