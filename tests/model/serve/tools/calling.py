"""Two functions, templates that show them in every form, and calls in a text."""

from __future__ import annotations

from typing import Any

from launchyard.model.serve.tools.asked import Tools
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
from launchyard.model.serve.tools.parse import ToolParser
from launchyard.model.serve.tools.use import ToolUse, use_tools
from launchyard.model.text.chat import Chat
from launchyard.model.text.tokenizer import Tokenizer

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
SCHEMAS: dict[str, dict[str, Any]] = {"weather": WEATHER, "now": {}, "now_and_then": {}}
ASKED = [{"role": "user", "content": "What is it like in Paris?"}]

# In the words of the real ones, as far as they write tools and calls.
TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SHOWN = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
TEMPLATES = {
    "hermes": SHOWN + '{# <tool_call>\n{"name": …, "arguments": …}\n</tool_call> #}' + TURNS,
    "smollm3": "{% if xml_tools %}{{ xml_tools }}<tool_call>{% endif %}" + TURNS,
    "llama": SHOWN + """{% if false %}{{ '{"name": "' + name + '", ' }}{{ '"parameters": ' }}{% endif %}""" + TURNS,
    "mistral": SHOWN + "{% if false %}[TOOL_CALLS] [{% endif %}" + TURNS,
    "mistral args": SHOWN + "{% if false %}[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}{% endif %}" + TURNS,
    "mistral ids": SHOWN + "{% if false %}[TOOL_CALLS]{{ name }}[CALL_ID]{{ id }}[ARGS]{% endif %}" + TURNS,
    "coder": SHOWN + "{# <tool_call>\n<function=…>\n<parameter=…>\n…\n</parameter> #}" + TURNS,
    "glm": SHOWN + "{# <tool_call>…\n<arg_key>…</arg_key>\n<arg_value>…</arg_value>\n</tool_call> #}" + TURNS,
}
SYNTAXES = {
    "hermes": HERMES,
    "smollm3": HERMES,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "mistral args": MISTRAL_ARGS,
    "mistral ids": MISTRAL_IDS,
    "coder": QWEN_CODER,
    "glm": GLM,
}


def use_of(
    tokenizer: Tokenizer, template: str, choice: object = None, *, parallel: bool = True, strict: bool = False
) -> ToolUse:
    tools = Tools.read(STRICT if strict else TOOLS, choice, parallel=parallel)
    assert tools is not None
    return use_tools(tools, Chat(tokenizer, template=TEMPLATES[template]), tokenizer)


def parsed(parser: ToolParser, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Content, and names and arguments of calls."""
    found = [*map(parser.add, pieces), parser.flush()]
    return "".join(one.content for one in found), [(call.name, call.arguments) for one in found for call in one.calls]


def whole(text: str, syntax: ToolSyntax, *, most: int | None = None) -> tuple[str, list[tuple[str, str]]]:
    return parsed(ToolParser(syntax, SCHEMAS, most=most), [text])


def may_come(use: ToolUse, text: str, response_format: dict[str, Any] | None = None) -> bool:
    """Whether an answer may be this text, and end there."""
    constraint = use.constraint(V, {END}, response_format=response_format)
    assert constraint is not None
    for token in use.tokenizer.encode(text):
        if not constraint.allowed()[token]:
            return False
        constraint.accept(token)
    return bool(constraint.allowed()[END])


PARIS = ("weather", '{"city": "Paris"}')
NOW = ("now", "{}")
CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'
LLAMA_CALL = '{"name": "weather", "parameters": {"city": "Paris"}}'
ARGS_CALL = '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}'
IDS_CALL = '[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{"city": "Paris"}'
CODER_CALL = "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
GLM_CALL = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>"
