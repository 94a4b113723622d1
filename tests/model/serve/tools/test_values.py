"""Arguments between tags: what a template writes is read as what it was, and what must fit a schema does."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.generate import generate_all
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.serve.tools.asked import Tools
from launchyard.model.serve.tools.forms import GLM, QWEN_CODER, ToolSyntax
from launchyard.model.serve.tools.parse import ToolParser
from launchyard.model.serve.tools.use import ToolUse, use_tools
from launchyard.model.serve.tools.values import argument_of
from launchyard.model.text.chat import Chat
from launchyard.model.text.tokenizer import Tokenizer
from tests.model.serve.tools.calling import END, TEMPLATES, V, may_come, parsed

SCHEMA: dict[str, Any] = {
    "$defs": {"mode": {"enum": ["read", "write"]}, "text": {"$ref": "#/$defs/plain"}, "plain": {"type": "string"}},
    "type": "object",
    "properties": {
        "path": {"type": "string", "minLength": 2, "maxLength": 5, "description": "where"},
        "text": {"$ref": "#/$defs/text"},
        "mode": {"$ref": "#/$defs/mode"},
        "lines": {"type": "integer", "minimum": 1, "maximum": 90},
        "perhaps": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "number": {"type": ["integer", "null"]},
        "flag": {"type": "boolean"},
        "more": {"type": "object", "properties": {"a": {"$ref": "#/$defs/mode"}}, "additionalProperties": False},
        "any": {},
    },
    "required": ["path", "lines"],
}
KEPT = st.characters(codec="utf-8", exclude_characters="<")  # what a tag is made of ends a text
WORDS = st.text(KEPT, max_size=6)
VALUES = {
    "path": st.text(KEPT, min_size=2, max_size=5),
    "text": WORDS,
    "mode": st.sampled_from(["read", "write"]),
    "lines": st.integers(1, 90),
    "perhaps": st.none() | WORDS.filter(lambda text: text.strip() != "null"),
    "number": st.none() | st.integers(-99, 99),
    "flag": st.booleans(),
    "more": st.fixed_dictionaries({}, optional={"a": st.sampled_from(["read", "write"])}),
    "any": st.lists(st.integers(0, 9), max_size=2) | st.sampled_from(["a word", "<b>"]) | st.booleans(),
}
ARGUMENTS = st.fixed_dictionaries({}, optional=VALUES)


def written(syntax: ToolSyntax, arguments: dict[str, object]) -> str:
    """As their templates write calls: texts as they are, all else as JSON."""
    texts = {key: one if isinstance(one, str) else json.dumps(one) for key, one in arguments.items()}
    if syntax is GLM:
        tags = "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{text}</arg_value>\n" for key, text in texts.items())
        return f"<tool_call>edit\n{tags}</tool_call>"
    tags = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())
    return f"<tool_call>\n<function=edit>\n{tags}</function>\n</tool_call>"


def use_for(tokenizer: Tokenizer, name: str, schema: dict[str, Any]) -> ToolUse:
    function = {"type": "function", "function": {"name": "edit", "parameters": schema}}
    tools = Tools.read([function], "required", parallel=False)
    assert tools is not None
    return use_tools(tools, Chat(tokenizer, template=TEMPLATES[name]), tokenizer)


@given(arguments=ARGUMENTS, syntax=st.sampled_from([QWEN_CODER, GLM]))
def test_what_a_template_writes_is_read_as_it_was(arguments: dict[str, object], syntax: ToolSyntax) -> None:
    content, ((name, found),) = parsed(ToolParser(syntax, {"edit": SCHEMA}), [written(syntax, arguments)])
    assert (content, name, json.loads(found)) == ("", "edit", arguments)


@pytest.mark.parametrize("marked", [False, True], ids=["marks of letters", "marks of tokens"])
@pytest.mark.parametrize(("name", "syntax"), [("coder", QWEN_CODER), ("glm", GLM)])
def test_what_fits_may_come_and_nothing_else(
    tokenizer: Tokenizer, marked_tokenizer: Tokenizer, name: str, syntax: ToolSyntax, marked: bool
) -> None:
    use = use_for(marked_tokenizer if marked else tokenizer, name, SCHEMA)
    least = {"path": "ab", "lines": 5}
    full = {**least, "path": "a\n", "text": "", "mode": "read", "lines": 90, "perhaps": "<b>\n\n</b>", "number": None,
            "flag": True, "more": {"a": "write"}, "any": [1]}  # fmt: skip
    for arguments in (least, {key: full[key] for key in VALUES}):
        assert may_come(use, written(syntax, arguments))
    for wrong in ({"path": "a"}, {"path": "abcdef"}, {"lines": 0}, {"mode": "delete"}, {"number": "x"}, {"flag": "yes"},
                  {"more": {"b": 1}}, {"other": 1}):  # fmt: skip
        arguments = {**least, **wrong}
        assert not may_come(use, written(syntax, {k: arguments[k] for k in (*VALUES, "other") if k in arguments})), (
            wrong
        )


@pytest.mark.parametrize("marked", [False, True], ids=["marks of letters", "marks of tokens"])
@pytest.mark.parametrize("name", ["coder", "glm"])
def test_whatever_is_drawn_fits(
    model: Transformer, tokenizer: Tokenizer, marked_tokenizer: Tokenizer, name: str, marked: bool
) -> None:
    ending = {key: SCHEMA["properties"][key] for key in ("path", "mode", "lines", "flag", "more")}
    use = use_for(marked_tokenizer if marked else tokenizer, name, {**SCHEMA, "properties": ending})
    closing = {token: 6.0 for letter in "<\n/}f" for token in use.tokenizer.encode(letter)}
    requests = [
        Request([5, 6], 400, Sampling(logit_bias=closing), frozenset({END}), seed, constraint=use.constraint(V, {END}))
        for seed in range(6)
    ]
    texts = [one for one in generate_all(model, requests) if one.ended == "stop"]
    assert len(texts) >= 3
    for one in texts:
        text = use.tokenizer.decode(one.new, skip_special=use.skip_special)
        content, calls = parsed(use.parser(), [text])
        assert content == "" and calls, text
        for _, found in calls:
            jsonschema.validate(json.loads(found), SCHEMA, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("raw", "schema", "value"),
    [
        ("True", {"type": "boolean"}, True),  # of a template that writes values as Python has them
        ("None", {"type": ["integer", "null"]}, None),
        ("True", {"type": "string"}, "True"),
        ("true", {"type": ["string", "boolean"]}, True),
        ("5", {"type": "string"}, "5"),
        ("5", {"type": ["string", "null"]}, "5"),
        ("5", {"type": ["string", "integer"]}, 5),
        ("5.0", {"enum": ["5.0", 7]}, 5.0),
        ("5", None, 5),
        ('"a"', None, '"a"'),
        ("NaN", None, "NaN"),
        ("much", {"type": "integer"}, "much"),
        ("[1, 2", {"type": "array"}, "[1, 2"),
        ("null", {"$ref": "#/$defs/none"}, "null"),
        ("1", {"$ref": "#/$defs/loop"}, 1),
    ],
)
def test_the_schema_says_what_a_text_is(raw: str, schema: object, value: object) -> None:
    root = {"$defs": {"none": {"const": "null"}, "loop": {"$ref": "#/$defs/loop"}}}
    found = argument_of(raw, schema, root)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"properties": {"a": {"type": "string", "pattern": "^a"}}}, "a call of edit: a cannot be honoured: pattern"),
        ({"properties": {"a": {"type": "string", "format": "date"}}}, "a cannot be honoured: format"),
        ({"properties": {"a": {"type": ["string", "integer"], "minimum": 1}}}, "a cannot be honoured: minimum"),
        ({"properties": {"a": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]}}}, "a text of one"),
        ({"properties": {"a": {"type": "array", "items": {"$ref": "#"}}}}, r"\$ref '#' is none of \$defs"),
        ({"properties": {"a": {"type": "integer", "not": {}}}}, "not"),
        ({"properties": {}, "minProperties": 1}, "minProperties, where arguments stand one by one"),
        ({"properties": {}, "required": ["a"]}, "required names 'a', which is none of properties"),
        ({"properties": {"a b": {}}}, "'a b' cannot stand in a tag"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tokenizer: Tokenizer, schema: dict[str, Any], said: str) -> None:
    for name in ("coder", "glm"):
        with pytest.raises(ValueError, match=said):
            use_for(tokenizer, name, {"type": "object", **schema}).constraint(V, {END})


def test_a_value_that_holds_its_own_end_is_refused(tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["b", "</parameter>"]}}}
    with pytest.raises(ValueError, match=r"holds </parameter>, which ends it"):
        use_for(tokenizer, "coder", schema).constraint(V, {END})
