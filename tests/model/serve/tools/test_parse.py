"""Calls are found in any form and however the text is cut; no text is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.model.serve.tools.forms import (
    GLM,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_ARGS,
    MISTRAL_IDS,
    QWEN_CODER,
    ToolSyntax,
)
from launchyard.model.serve.tools.forms import SYNTAXES as ALL_SYNTAXES
from launchyard.model.serve.tools.parse import ToolParser
from tests.model.serve.tools.calling import (
    ARGS_CALL,
    CALL,
    CODER_CALL,
    GLM_CALL,
    IDS_CALL,
    LLAMA_CALL,
    NOW,
    PARIS,
    SCHEMAS,
    parsed,
    whole,
)

# -- finding calls -----------------------------------------------------------------------------------------------------
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
    (MISTRAL_ARGS, ARGS_CALL, "", [PARIS]),
    (MISTRAL_ARGS, f"So.\n{ARGS_CALL}[TOOL_CALLS]now[ARGS]{{}}", "So.", [PARIS, NOW]),
    (MISTRAL_ARGS, '[TOOL_CALLS] now_and_then[ARGS] {"a": "[ARGS]}"} so', " so",
     [("now_and_then", '{"a": "[ARGS]}"}')]),
    (MISTRAL_IDS, f"{IDS_CALL}{ARGS_CALL}", "", [PARIS, PARIS]),
    (QWEN_CODER, CODER_CALL, "", [PARIS]),
    (QWEN_CODER, f"I look.\n{CODER_CALL}\n<tool_call>\n<function=now>\n</function>\n</tool_call>", "I look.",
     [PARIS, NOW]),
    (QWEN_CODER, "<tool_call><function=weather><parameter=city>\n\n<a>\n</parameter><parameter=days>[1, 2]</parameter>"
     "</function>", "", [("weather", '{"city": "\\n<a>", "days": [1, 2]}')]),
    (QWEN_CODER, "<tool_call>\n<function=now>\n<parameter=x>\n</tool_call> </function>\n</parameter>\n</function>\n"
     "</tool_call>", "", [("now", '{"x": "</tool_call> </function>"}')]),
    (GLM, GLM_CALL, "", [PARIS]),
    (GLM, "<tool_call>weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call><tool_call>now</tool_call>",
     "", [PARIS, NOW]),
    (GLM, "Well. <tool_call>now_and_then <arg_key>a</arg_key> <arg_value>5</arg_value> </tool_call>", "Well.",
     [("now_and_then", '{"a": 5}')]),
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
    (MISTRAL_ARGS, f"[TOOL_CALLS] [{CALL}]"),
    (MISTRAL_ARGS, "[TOOL_CALLS]weather {}"),
    (MISTRAL_ARGS, "[TOOL_CALLS]rm[ARGS]{}"),
    (MISTRAL_ARGS, '[TOOL_CALLS]weather[ARGS]{"city": 1e999}'),
    (MISTRAL_ARGS, "[TOOL_CALLS]weather[ARGS][]"),
    (MISTRAL_ARGS, '[TOOL_CALLS]weather[ARGS]{"city'),
    (QWEN_CODER, f"<tool_call>\n{CALL}\n</tool_call>"),
    (QWEN_CODER, CODER_CALL.replace("weather", "rm")),
    (QWEN_CODER, CODER_CALL.replace("</function>", "and")),
    (QWEN_CODER, CODER_CALL.removesuffix("</function>\n</tool_call>")),
    (QWEN_CODER, CODER_CALL.replace("Paris", "Paris\n</parameter> ")),
    (GLM, GLM_CALL.replace("weather", "weathers")),
    (GLM, GLM_CALL.replace("<arg_value>", "<value>")),
    (GLM, GLM_CALL.removesuffix("</tool_call>")),
    (GLM, "<tool_call>now 5</tool_call>"),
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
    assert parsed(ToolParser(syntax, SCHEMAS), list(text)) == expected
    for at in range(1, len(text)):
        assert parsed(ToolParser(syntax, SCHEMAS), [text[:at], text[at:]]) == expected


FRAGMENTS = [ARGS_CALL, CODER_CALL, GLM_CALL, "[ARGS]", "now", "<function=now>", "<parameter=a>", "</parameter>",
             "</function>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
             "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", CALL, LLAMA_CALL, '{"name": "now"}', "[",
             "]", "{", "}", '"', "\\", "<", "</", "a", " ", "\n", ";", ",", "ü", "<tool", f"[{CALL}]"]  # fmt: skip


@given(
    parts=st.lists(st.sampled_from(FRAGMENTS), max_size=9),
    syntax=st.sampled_from(ALL_SYNTAXES),
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
    assert parsed(ToolParser(syntax, SCHEMAS, most=most), pieces) == (content, calls)
    if not calls:
        assert content == text
    assert most is None or len(calls) <= most


@pytest.mark.parametrize(
    ("syntax", "before", "call"),
    [
        (HERMES, "Let me see.", f"<tool_call>{CALL}</tool_call>"),
        (LLAMA, "", LLAMA_CALL),
        (MISTRAL, "Let me see.", f"[TOOL_CALLS] [{CALL}]"),
        (MISTRAL_ARGS, "Let me see.", ARGS_CALL),
        (MISTRAL_IDS, "Let me see.", IDS_CALL),
        (QWEN_CODER, "Let me see.", CODER_CALL),
        (GLM, "Let me see.", GLM_CALL),
    ],
)
def test_text_before_a_call_is_given_at_once_and_the_call_when_it_is_whole(
    syntax: ToolSyntax, before: str, call: str
) -> None:
    parser = ToolParser(syntax, SCHEMAS)
    assert parser.add(before).content == before
    for letter in call[:-1]:
        found = parser.add(letter)
        assert (found.content, found.calls) == ("", ())
    assert parser.is_inside
    (one,) = parser.add(call[-1]).calls
    assert not parser.is_inside
    shown = one.as_json()
    assert shown == {"id": one.id, "type": "function", "function": {"name": "weather", "arguments": PARIS[1]}}
    assert one.id.isalnum() and len(one.id) == 9 if syntax.short_ids else one.id.startswith("call_")


def test_after_the_last_call_that_is_wanted_the_text_is_over() -> None:
    parser = ToolParser(HERMES, SCHEMAS, most=1)
    text = f"<tool_call>{CALL}</tool_call>"
    assert len(parser.add(text + text).calls) == 1
    assert parser.is_over
    assert parser.add(f"more {text}") == parser.flush() == type(parser.flush())()
