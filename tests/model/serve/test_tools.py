"""Tools: what is asked for is checked, shown and kept; calls are found however the text is cut; no text is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.generate import generate_all
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.serve.tool_text import HERMES, LLAMA, MISTRAL, ToolParser, ToolSyntax, syntax_of
from launchyard.model.serve.tools import Tools, ToolUse
from launchyard.model.text.chat import Chat
from launchyard.model.text.tokenizer import Tokenizer
from tests.support.tiny_models import byte_tokenizer, llama, random_model

V = 320
END = 0
WEATHER = {
    "$defs": {"city": {"enum": ["Paris", "Zürich"]}},
    "type": "object",
    "properties": {
        "city": {"$ref": "#/$defs/city"},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
    },
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
STRICT = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
NAMES = ("weather", "now")
ASKED = [{"role": "user", "content": "What is it like in Paris?"}]

# In the words of the real ones, as far as they write tools and calls.
_TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_SHOWN = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
TEMPLATES = {
    "hermes": _SHOWN + '{# <tool_call>\n{"name": …, "arguments": …}\n</tool_call> #}' + _TURNS,
    "smollm3": "{% if xml_tools %}{{ xml_tools }}<tool_call>{% endif %}" + _TURNS,
    "llama": _SHOWN + """{% if false %}{{ '{"name": "' + name + '", ' }}{{ '"parameters": ' }}{% endif %}""" + _TURNS,
    "mistral": _SHOWN + "{% if false %}[TOOL_CALLS] [{% endif %}" + _TURNS,
}
SYNTAXES = {"hermes": HERMES, "smollm3": HERMES, "llama": LLAMA, "mistral": MISTRAL}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(byte_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"))


@pytest.fixture(scope="module")
def marked_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """With markers as tokens: Mistral's is special, that of Hermes is none."""
    import tokenizers

    path = byte_tokenizer(tmp_path_factory.mktemp("marked") / "tokenizer.json")
    raw = tokenizers.Tokenizer.from_file(path)
    raw.add_special_tokens(["[TOOL_CALLS]"])
    raw.add_tokens(["<tool_call>", "</tool_call>"])
    raw.save(path)
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model(llama(vocab_size=V, padded_vocab_size=V, max_seq_len=1024))


def use_of(
    tokenizer: Tokenizer, template: str, choice: object = None, *, parallel: bool = True, strict: bool = False
) -> ToolUse:
    tools = Tools.read(STRICT if strict else TOOLS, choice, parallel=parallel)
    assert tools is not None
    return tools.for_chat(Chat(tokenizer, template=TEMPLATES[template]), tokenizer)


def parsed(parser: ToolParser, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Content, and names and arguments of calls."""
    found = [*map(parser.add, pieces), parser.flush()]
    return "".join(one.content for one in found), [(call.name, call.arguments) for one in found for call in one.calls]


def whole(text: str, syntax: ToolSyntax, *, most: int | None = None) -> tuple[str, list[tuple[str, str]]]:
    return parsed(ToolParser(syntax, NAMES, most=most), [text])


# -- finding calls -----------------------------------------------------------------------------------------------------
PARIS = ("weather", '{"city": "Paris"}')
NOW = ("now", "{}")
CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'
LLAMA_CALL = '{"name": "weather", "parameters": {"city": "Paris"}}'
TEXTS: list[tuple[ToolSyntax, str, str, list[tuple[str, str]]]] = [
    (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", "", [PARIS]),
    (HERMES, f"I look.\n\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{{\"name\": \"now\"}}</tool_call>\n",
     "I look.", [PARIS, NOW]),
    (HERMES, f"<tool_call>[{CALL}, {{\"name\":\"now\",\"arguments\":{{}}}}]</tool_call> That is all. ",
     " That is all.", [PARIS, NOW]),
    (HERMES, f"<tool_call>\n{CALL}", "", [PARIS]),  # its end token came instead
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call> \\"}"}}</tool_call>', "",
     [("weather", '{"city": "</tool_call> \\"}"}')]),
    (HERMES, '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Zürich 😀\\"}"}</tool_call>', "",
     [("weather", '{"city": "Zürich 😀"}')]),
    (HERMES, '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [NOW]),
    (HERMES, '<tool_call>{"name": "now", "arguments": "null"}</tool_call>', "", [NOW]),
    (LLAMA, LLAMA_CALL, "", [PARIS]),
    (LLAMA, f"\n {LLAMA_CALL}; {LLAMA_CALL}\n", "", [PARIS, PARIS]),
    (LLAMA, f"<|python_tag|>{LLAMA_CALL}", "", [PARIS]),
    (LLAMA, f"Well: <|python_tag|>{LLAMA_CALL} and so", "Well: and so", [PARIS]),
    (MISTRAL, f"[TOOL_CALLS] [{CALL}]", "", [PARIS]),
    (MISTRAL, f'So. [TOOL_CALLS][{CALL}, {{"name": "now", "arguments": {{}}, "id": "abcdefghi"}}]', "So.",
     [PARIS, NOW]),
]  # fmt: skip
TEXT_ALONE: list[tuple[ToolSyntax, str]] = [
    (HERMES, " plain text < with <tool brackets> "),
    (HERMES, f"{CALL}"),
    (HERMES, "<tool_call>\n{not json}\n</tool_call> more"),
    (HERMES, '<tool_call>\n{"name": "weather", "arguments": {"city": "Par'),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": 1e999}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": NaN}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "\\ud800"}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
    (HERMES, '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {}}</tool_call>'),
    (HERMES, "<tool_call>[]</tool_call>"),
    (HERMES, f"<tool_call>{CALL} and </tool_call>"),
    (HERMES, f"<tool_call>{CALL}</tool_c"),
    (HERMES, "<tool_call>" + "[" * 5000 + "]" * 5000 + "</tool_call>"),
    (LLAMA, '{"name": "Paris", "parameters": {}}'),
    (LLAMA, '{"capital": "Paris"} {"a": 1}'),
    (LLAMA, f"The call is {LLAMA_CALL}"),
    (LLAMA, '{"name": "weather", "parameters": {'),
    (LLAMA, "  <|python_tag|>print(1)"),
    (MISTRAL, f"[{CALL}]"),
    (MISTRAL, "[TOOL_CALLS] weather"),
    (MISTRAL, f"[TOOL_CALLS] [{CALL}, 3]"),
]


@pytest.mark.parametrize(("syntax", "text", "content", "calls"), TEXTS)
def test_calls_are_found_and_the_rest_is_text(
    syntax: ToolSyntax, text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    assert whole(text, syntax) == (content, calls)


@pytest.mark.parametrize(("syntax", "text"), TEXT_ALONE)
def test_what_is_no_call_stays_text_to_the_letter(syntax: ToolSyntax, text: str) -> None:
    assert whole(text, syntax) == (text, [])


ALL_TEXTS = [(syntax, text) for syntax, text, *_ in TEXTS] + [each for each in TEXT_ALONE if len(each[1]) < 200]


@pytest.mark.parametrize(("syntax", "text"), ALL_TEXTS)
def test_however_a_text_is_cut_it_says_the_same(syntax: ToolSyntax, text: str) -> None:
    expected = whole(text, syntax)
    assert parsed(ToolParser(syntax, NAMES), list(text)) == expected
    for at in range(1, len(text)):
        assert parsed(ToolParser(syntax, NAMES), [text[:at], text[at:]]) == expected


FRAGMENTS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", CALL, LLAMA_CALL, '{"name": "now"}', "[",
             "]", "{", "}", '"', "\\", "<", "</", "a", " ", "\n", ";", ",", "ü", "<tool", f"[{CALL}]"]  # fmt: skip


@given(
    parts=st.lists(st.sampled_from(FRAGMENTS), max_size=9),
    syntax=st.sampled_from([HERMES, LLAMA, MISTRAL]),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    most=st.sampled_from([None, 1]),
)
def test_any_text_in_any_pieces(parts: list[str], syntax: ToolSyntax, sizes: list[int], most: int | None) -> None:
    text = "".join(parts)
    pieces = []
    rest = text
    while rest:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(rest[:size])
        rest = rest[size:]
    content, calls = whole(text, syntax, most=most)
    assert parsed(ToolParser(syntax, NAMES, most=most), pieces) == (content, calls)
    if not calls:
        assert content == text
    assert most is None or len(calls) <= most


@pytest.mark.parametrize(
    ("syntax", "before", "call"),
    [
        (HERMES, "Let me see.", f"<tool_call>{CALL}</tool_call>"),
        (LLAMA, "", LLAMA_CALL),
        (MISTRAL, "Let me see.", f"[TOOL_CALLS] [{CALL}]"),
    ],
)
def test_text_before_a_call_is_given_at_once_and_the_call_when_it_is_whole(
    syntax: ToolSyntax, before: str, call: str
) -> None:
    parser = ToolParser(syntax, NAMES)
    assert parser.add(before).content == before
    for letter in call[:-1]:
        found = parser.add(letter)
        assert (found.content, found.calls) == ("", ())
    assert parser.is_inside
    (one,) = parser.add(call[-1]).calls
    assert not parser.is_inside
    shown = one.as_json()
    assert shown == {"id": one.id, "type": "function", "function": {"name": "weather", "arguments": PARIS[1]}}
    assert one.id.isalnum() and len(one.id) == 9 if syntax is MISTRAL else one.id.startswith("call_")


def test_after_the_last_call_that_is_wanted_the_text_is_over() -> None:
    parser = ToolParser(HERMES, NAMES, most=1)
    text = f"<tool_call>{CALL}</tool_call>"
    assert len(parser.add(text + text).calls) == 1
    assert parser.is_over
    assert parser.add(f"more {text}") == parser.flush() == type(parser.flush())()


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
        tools.for_chat(Chat(tokenizer, template=_TURNS), tokenizer)
    only_first = "{% if messages | length == 1 %}" + _SHOWN + "{% endif %}{# <tool_call> #}" + _TURNS
    use = tools.for_chat(Chat(tokenizer, template=only_first), tokenizer)
    assert use.ids(ASKED)
    with pytest.raises(ValueError, match="does not show tools"):
        use.ids([{"role": "user", "content": "weather now"}] * 2)


@pytest.mark.parametrize(
    "marker", ["", "<tool_call><function=", "[TOOL_CALLS]{{ name }}[ARGS]", "<tool_call><arg_key>"]
)
def test_a_template_whose_calls_are_not_known_is_refused(tokenizer: Tokenizer, marker: str) -> None:
    tools = Tools.read(TOOLS)
    assert tools is not None
    assert syntax_of(marker) is None
    with pytest.raises(ValueError, match=r"not read here, which is Hermes \(<tool_call>\), Llama 3.1"):
        tools.for_chat(Chat(tokenizer, template=_SHOWN + "{# " + marker + " #}" + _TURNS), tokenizer)


# -- calls that must come ----------------------------------------------------------------------------------------------
GENERATED = ["hermes", "llama", "mistral"]


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
        for seed in range(6)
    ]
    texts = generate_all(model, requests)
    decoded = [use.tokenizer.decode(text.new, skip_special=use.skip_special) for text in texts if text.ended == "stop"]
    assert len(decoded) >= 4
    return decoded


def may_come(use: ToolUse, text: str, response_format: dict[str, Any] | None = None) -> bool:
    """Whether an answer may be this text, and end there."""
    constraint = use.constraint(V, {END}, response_format=response_format)
    assert constraint is not None
    for token in use.tokenizer.encode(text):
        if not constraint.allowed()[token]:
            return False
        constraint.accept(token)
    return bool(constraint.allowed()[END])


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
    assert use.skip_special is not (marked and name == "mistral")
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
}  # fmt: skip


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
        assert not may_come(use, call.replace("Paris", "Rome").replace('"now"', '"then"'))
    free = ["", "Paris is fine\n< and [so] on", " \n a"]
    assert all(may_come(use, text) for text in free)
    assert not may_come(use, {"hermes": "x <tool_call>y", "llama": '\n{"a": 1}', "mistral": "x [TOOL_CALLS] y"}[name])
    if name != "llama":
        assert may_come(use, f"Let me see. {CALLS_BY_HAND[name][0]}")


def test_only_strict_functions_are_held_to_their_schemas(tokenizer: Tokenizer) -> None:
    tools = Tools.read([STRICT[1], TOOLS[0]])
    assert tools is not None
    use = tools.for_chat(Chat(tokenizer, template=TEMPLATES["llama"]), tokenizer)
    assert may_come(use, LLAMA_CALL.replace("city", "town"))
    assert not may_come(use, '{"name": "now", "parameters": {"city": "Paris"}}')


def test_a_schema_of_arguments_that_cannot_be_honoured_is_refused(tokenizer: Tokenizer) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
    tools = Tools.read([tool], "required")
    assert tools is not None
    use = tools.for_chat(Chat(tokenizer, template=TEMPLATES["hermes"]), tokenizer)
    with pytest.raises(ValueError, match=r"a call of f cannot be honoured: .*not"):
        use.constraint(V, {END})


def test_a_grammar_of_the_response_is_refused_beside_tools(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="cannot be had together with tools"):
        use_of(tokenizer, "hermes").constraint(V, {END}, response_format={"type": "grammar", "grammar": 'start: "a"'})


# -- what is asked for -------------------------------------------------------------------------------------------------
def function(**fields: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": "f", **fields}}


@pytest.mark.parametrize(
    ("tools", "choice", "said"),
    [
        (["f"], None, "tools.0 is no object"),
        ([{"type": "web_search"}], None, "tools.0.type is 'web_search'; tools here are of type function alone"),
        ([{"type": "function"}], None, "tools.0.function is no object"),
        ([function(), function(name="a b")], None, "tools.1.function.name is 'a b'; it must be 1 to 64 letters"),
        ([function(name="é")], None, "tools.0.function.name is 'é'"),
        ([function(name="a" * 65)], None, "tools.0.function.name"),
        ([function(name="a\n")], None, "tools.0.function.name"),
        ([function(arguments={})], None, "tools.0.function.arguments is not known; it takes description"),
        ([function(description=3)], None, "tools.0.function.description is no text"),
        ([function(strict="yes")], None, "tools.0.function.strict is neither"),
        ([function(parameters=[])], None, "tools.0.function.parameters is no JSON schema of an object"),
        ([function(parameters={"type": "array"})], None, "tools.0.function.parameters is no JSON schema"),
        ([function(), function()], None, "two functions of the name 'f'"),
        ([], "required", 'tool_choice is "required", and there are no tools'),
        ([function()], "always", 'tool_choice is \'always\'; use "none", "auto"'),
        ([function()], {"type": "function"}, "tool_choice is {'type': 'function'}; use"),
        ([function()], {"type": "function", "function": {"name": "g"}}, "tool_choice names 'g'; the tools are: f"),
        ([], {"type": "function", "function": {"name": "g"}}, "tool_choice names 'g'; the tools are: none"),
    ],
)
def test_what_is_wrong_with_tools_is_said(tools: list[object], choice: object, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Tools.read(tools, choice)
    assert said in str(caught.value)


@pytest.mark.parametrize(("tools", "choice"), [(TOOLS, "none"), ([], None), ([], "auto"), ([], "none")])
def test_without_tools_there_are_none(tools: list[object], choice: object) -> None:
    assert Tools.read(tools, choice) is None


def test_parameters_may_be_left_out(tmp_path: Path) -> None:
    tools = Tools.read([function(), function(name="g", parameters={"properties": {}})])
    assert tools is not None
    assert [schema["type"] for schema in tools.schemas.values()] == ["object", "object"]
    assert all("parameters" in tool["function"] for tool in tools.shown)  # type: ignore[operator]
