"""The template decides how calls look; what must come comes, and fits its schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.generate import generate_all
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.serve.tools.asked import Tools
from launchyard.model.serve.tools.forms import syntax_of
from launchyard.model.serve.tools.use import ToolUse, use_tools
from launchyard.model.text.chat import Chat
from launchyard.model.text.tokenizer import Tokenizer
from tests.model.serve.tools.calling import (
    ARGS_CALL,
    ASKED,
    CALL,
    CODER_CALL,
    END,
    GLM_CALL,
    IDS_CALL,
    LLAMA_CALL,
    SHOWN,
    STRICT,
    SYNTAXES,
    TEMPLATES,
    TOOLS,
    TURNS,
    WEATHER,
    V,
    may_come,
    parsed,
    use_of,
)


# -- the template decides ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_syntax_is_that_of_the_template_which_shows_the_tools(tokenizer: Tokenizer, name: str) -> None:
    use = use_of(tokenizer, name, strict=True)
    assert use.syntax is SYNTAXES[name]
    prompt = tokenizer.decode(use.ids(ASKED), skip_special=False)
    assert all(part in prompt for part in ("weather", "of a city", "now", ASKED[0]["content"], "<assistant>"))
    assert "strict" not in prompt


def test_a_template_that_ignores_tools_is_refused(tokenizer: Tokenizer) -> None:
    tools = Tools.read(TOOLS)
    assert tools is not None
    with pytest.raises(ValueError, match=r"tokenizer\.json does not show tools"):
        use_tools(tools, Chat(tokenizer, template=TURNS), tokenizer)
    only_first = "{% if messages | length == 1 %}" + SHOWN + "{% endif %}{# <tool_call> #}" + TURNS
    use = use_tools(tools, Chat(tokenizer, template=only_first), tokenizer)
    assert use.ids(ASKED)
    with pytest.raises(ValueError, match="does not show tools"):
        use.ids([{"role": "user", "content": "weather now"}] * 2)


@pytest.mark.parametrize("marker", ["", "<tool_call><function=", "[AVAILABLE_TOOLS]", "<｜tool▁calls▁begin｜>"])
def test_a_template_whose_calls_are_not_known_is_refused(tokenizer: Tokenizer, marker: str) -> None:
    tools = Tools.read(TOOLS)
    assert tools is not None
    assert syntax_of(marker) is None
    with pytest.raises(ValueError, match=r"not read here, which is Hermes \(<tool_call>\), Llama 3.1"):
        use_tools(tools, Chat(tokenizer, template=SHOWN + "{# " + marker + " #}" + TURNS), tokenizer)


# -- calls that must come ----------------------------------------------------------------------------------------------
GENERATED = ["hermes", "llama", "mistral", "mistral args", "mistral ids", "coder", "glm"]
SPECIAL = ("mistral", "mistral args", "mistral ids", "glm")  # forms with marks that are special tokens


def answers(model: Transformer, use: ToolUse, response_format: dict[str, Any] | None = None) -> list[str]:
    """Whatever the model likes to write, of which it likes ends; those that came to an end."""
    closing = {token: 3.0 for letter in '"}],' for token in use.tokenizer.encode(letter)}
    requests = [
        Request(
            use.ids(ASKED)[-40:],
            300,
            Sampling(temperature=(0.5, 1.0, 2.0)[seed % 3], logit_bias=closing),
            frozenset({END}),
            seed,
            constraint=use.constraint(V, {END}, response_format=response_format),
        )
        for seed in range(4)
    ]
    texts = generate_all(model, requests)
    decoded = [use.tokenizer.decode(text.new, skip_special=use.skip_special) for text in texts if text.ended == "stop"]
    assert len(decoded) >= 2
    return decoded


def check_calls(use: ToolUse, text: str) -> list[str]:
    """Names of the calls that a text is, all of it."""
    content, calls = parsed(use.parser(), [text])
    assert content == "", text
    assert calls, text
    for name, arguments in calls:
        schema = WEATHER if name == "weather" else {"maxProperties": 0}
        jsonschema.validate(json.loads(arguments), schema, cls=jsonschema.Draft202012Validator)
    return [name for name, _ in calls]


@pytest.mark.parametrize("marked", [False, True], ids=["marker of letters", "marker of a token"])
@pytest.mark.parametrize("name", GENERATED)
def test_a_required_call_comes_and_its_arguments_fit(
    model: Transformer, tokenizer: Tokenizer, marked_tokenizer: Tokenizer, name: str, marked: bool
) -> None:
    use = use_of(marked_tokenizer if marked else tokenizer, name, "required")
    assert use.skip_special is not (marked and name in SPECIAL)
    for text in answers(model, use):
        check_calls(use, text)


@pytest.mark.parametrize("name", GENERATED)
def test_a_named_function_is_called_once(model: Transformer, tokenizer: Tokenizer, name: str) -> None:
    use = use_of(tokenizer, name, {"type": "function", "function": {"name": "weather"}})
    assert all(check_calls(use, text) == ["weather"] for text in answers(model, use))


@pytest.mark.parametrize("name", GENERATED)
def test_without_parallel_calls_there_is_one(model: Transformer, tokenizer: Tokenizer, name: str) -> None:
    use = use_of(tokenizer, name, "required", parallel=False)
    assert all(len(check_calls(use, text)) == 1 for text in answers(model, use))


@pytest.mark.parametrize("name", GENERATED)
def test_auto_holds_nothing_but_a_response_format(model: Transformer, tokenizer: Tokenizer, name: str) -> None:
    use = use_of(tokenizer, name)
    assert use.constraint(V, {END}) is None
    assert use.constraint(V, {END}, response_format={"type": "text"}) is None
    use = use_of(tokenizer, name, strict=True)
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": False}
    for text in answers(model, use, {"type": "json_schema", "json_schema": {"schema": schema}}):
        content, calls = parsed(use.parser(), [text])
        if calls:
            check_calls(use, text)
        else:
            assert json.loads(content) == {"a": None}


CALLS_BY_HAND = {
    "hermes": [f"<tool_call>\n{CALL}\n</tool_call>", f'<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{{"name":"now",'
               '"arguments":{}}\n</tool_call>'],
    "llama": [LLAMA_CALL, '{\n  "name": "now",\n  "parameters": {}\n}'],
    "mistral": [f"[TOOL_CALLS] [{CALL}]", f'[TOOL_CALLS][{CALL}, {{"name": "now", "arguments": {{}}}}]'],
    "mistral args": [ARGS_CALL, f"{ARGS_CALL}[TOOL_CALLS]now[ARGS]{{}}"],
    "mistral ids": [IDS_CALL, f"{IDS_CALL}[TOOL_CALLS]now[CALL_ID]123456789[ARGS]{{}}"],
    "coder": [CODER_CALL, f"{CODER_CALL}\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
              CODER_CALL.replace("</function>", "<parameter=days>\n[1, 2]\n</parameter>\n</function>")],
    "glm": [GLM_CALL, f"{GLM_CALL}\n<tool_call>now\n</tool_call>", GLM_CALL.replace("\n", "")],
}  # fmt: skip


BEGINNINGS = {  # of calls that go on otherwise
    **dict.fromkeys(["hermes", "coder", "glm"], "x <tool_call>y"),
    **dict.fromkeys(["mistral", "mistral args", "mistral ids"], "x [TOOL_CALLS] y"),
    "llama": '\n{"a": 1}',
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in CALLS_BY_HAND.items() for text in texts])
def test_calls_as_models_write_them_may_come(tokenizer: Tokenizer, name: str, text: str) -> None:
    """Where they must, and beside a response format; so may what has that format."""
    form = {
        "type": "json_object",
        "schema": {"properties": {"a": {}}, "required": ["a"], "additionalProperties": False},
    }
    for choice, written in (("required", text), ("auto", text), ("auto", '{"a": [1]}')):
        assert may_come(use_of(tokenizer, name, choice), written, form)


@pytest.mark.parametrize("marked", [False, True], ids=["marker of letters", "marker of a token"])
@pytest.mark.parametrize("name", GENERATED)
def test_of_strict_functions_each_call_fits_and_other_text_is_free(
    tokenizer: Tokenizer, marked_tokenizer: Tokenizer, name: str, marked: bool
) -> None:
    use = use_of(marked_tokenizer if marked else tokenizer, name, strict=True)
    for call in CALLS_BY_HAND[name]:
        assert may_come(use, call)
        assert not may_come(use, call.replace("Paris", "Rome").replace("now", "then"))
    free = ["", "Paris is fine\n< and [so] on", " \n a"]
    assert all(may_come(use, text) for text in free)
    assert not may_come(use, BEGINNINGS[name])
    if name != "llama":
        assert may_come(use, f"Let me see. {CALLS_BY_HAND[name][0]}")


def test_only_strict_functions_are_held_to_their_schemas(tokenizer: Tokenizer) -> None:
    tools = Tools.read([STRICT[1], TOOLS[0]])
    assert tools is not None
    use = use_tools(tools, Chat(tokenizer, template=TEMPLATES["llama"]), tokenizer)
    assert may_come(use, LLAMA_CALL.replace("city", "town"))
    assert not may_come(use, '{"name": "now", "parameters": {"city": "Paris"}}')


def test_a_schema_of_arguments_that_cannot_be_honoured_is_refused(tokenizer: Tokenizer) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
    tools = Tools.read([tool], "required")
    assert tools is not None
    use = use_tools(tools, Chat(tokenizer, template=TEMPLATES["hermes"]), tokenizer)
    with pytest.raises(ValueError, match=r"a call of f cannot be honoured: .*not"):
        use.constraint(V, {END})


def test_a_grammar_of_the_response_is_refused_beside_tools(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="cannot be had together with tools"):
        use_of(tokenizer, "hermes").constraint(V, {END}, response_format={"type": "grammar", "grammar": 'start: "a"'})
