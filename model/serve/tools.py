"""Calls of functions in a chat, as OpenAI has them: how a template has them written, and reading them in a text."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from launchyard.model.serve.constrained import json_rule
from launchyard.model.text.companions import Json
from launchyard.model.text.tokenizer import Tokenizer

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Syntax:
    """How a model writes calls: each between begin and end, or all as one list; arguments under their name."""

    begin: str
    end: str
    arguments: str
    is_list: bool = False

    def text_of(self, token: str, tokenizer: Tokenizer) -> str:
        """A mark in a grammar: a special token by its name, else its text."""
        number = tokenizer.vocabulary.get(token.strip())
        added = tokenizer.raw.get_added_tokens_decoder()
        if number is not None and number in added and added[number].special:
            return token.strip()
        return json.dumps(token)


# In the order in which a template is searched for them.
_SYNTAXES: tuple[tuple[str, Syntax], ...] = (
    ("<tool_call>", Syntax("<tool_call>\n", "\n</tool_call>", "arguments")),
    ("[TOOL_CALLS]", Syntax("[TOOL_CALLS]", "", "arguments", is_list=True)),
    ("<|python_tag|>", Syntax("", "", "parameters")),
    ('"parameters"', Syntax("", "", "parameters")),
)


def syntax_of(template: str) -> Syntax:
    """That of a chat template. ValueError if it has none that is known."""
    found = next((syntax for mark, syntax in _SYNTAXES if mark in template), None)
    if found is None or "tools" not in template:
        raise ValueError("the model's chat template has no place for tools; leave them out")
    return found


@dataclass(frozen=True)
class Tools:
    """functions: name -> schema of its arguments. choice: whether a call must come, or which."""

    specs: Sequence[Json]
    functions: Mapping[str, Json]
    choice: Literal["none", "auto", "required"]
    several: bool = True

    def grammar(self, syntax: Syntax, tokenizer: Tokenizer) -> str:
        """Of an answer that is calls and nothing else."""
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, syntax.arguments: schema},
                "required": ["name", syntax.arguments],
                "additionalProperties": False,
            }
            for name, schema in self.functions.items()
        ]
        one: Json = {"anyOf": calls} if len(calls) > 1 else calls[0]
        begin = syntax.text_of(syntax.begin, tokenizer) if syntax.begin else '""'
        if syntax.is_list:
            most = {} if self.several else {"maxItems": 1}
            return f"start: {begin} call\ncall: {json_rule({'type': 'array', 'items': one, 'minItems': 1, **most})}"
        end = syntax.text_of(syntax.end, tokenizer) if syntax.end else '""'
        more = '("\\n" one){0,15}' if self.several and syntax.end else ""
        return f"start: one {more}\none: {begin} call {end}\ncall: {json_rule(one)}"


def read_tools(specs: Sequence[Json], choice: object, *, several: bool) -> Tools | None:
    """What was asked for; None without tools. ValueError names the field that is at fault."""
    if not specs:
        if choice not in (None, "none", "auto"):
            raise ValueError("tool_choice asks for a call, but there are no tools")
        return None
    functions: dict[str, Json] = {}
    for place, spec in enumerate(specs):
        name, schema = _function(spec, f"tools.{place}")
        if name in functions:
            raise ValueError(f"tools.{place}: there are two functions named {name!r}")
        functions[name] = schema
    kind: Literal["none", "auto", "required"] = "auto"
    if isinstance(choice, Mapping):
        named = choice.get("function")
        wanted = named.get("name") if isinstance(named, Mapping) else None
        if wanted not in functions:
            raise ValueError(f"tool_choice names {wanted!r}; there are {', '.join(functions)}")
        return Tools(specs, {str(wanted): functions[str(wanted)]}, "required", several=False)
    if choice in ("none", "required"):
        kind = "none" if choice == "none" else "required"
    elif choice not in (None, "auto"):
        raise ValueError(f"tool_choice is {choice!r}; use none, auto, required or a function")
    return Tools(specs, functions, kind, several)


def _function(spec: Json, where: str) -> tuple[str, Json]:
    function = spec.get("function")
    if spec.get("type") != "function" or not isinstance(function, Mapping):
        raise ValueError(f"{where}: type is {spec.get('type')!r}; only functions can be called")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{where}.function.name is {name!r}; use letters, digits, _, - and ., 64 at most")
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(schema, dict):
        raise ValueError(f"{where}.function.parameters is no JSON schema")
    return name, schema


class CallReader:
    """Tells calls from the rest of a text that grows; what is no call comes out as it was written."""

    def __init__(self, syntax: Syntax) -> None:
        self._syntax = syntax
        self._mark = syntax.begin.strip()
        self._held = ""
        self._inside = False

    def add(self, text: str) -> str:
        """The part of the text so far that surely belongs to no call and was not given yet."""
        self._held += text
        if self._inside:
            return ""
        if not self._mark:  # the whole answer is a call, or none is
            self._inside = not self._held.strip() or self._held.lstrip().startswith("{")
            return "" if self._inside else self._all()
        at = self._held.find(self._mark)
        if at >= 0:
            self._inside = True
            sure = self._held[:at]
            self._held = self._held[at:]
            return sure
        keep = next((n for n in range(len(self._mark) - 1, 0, -1) if self._held.endswith(self._mark[:n])), 0)
        cut = len(self._held) - keep
        sure = self._held[:cut]
        self._held = self._held[cut:]
        return sure

    def finish(self) -> tuple[str, list[Json]]:
        """The rest of the text, and the calls as OpenAI has them. What cannot be read as calls is text."""
        if not self._inside and self._mark:
            return self._all(), []
        rest, found = self._calls(self._held)
        if not found:
            return self._all(), []
        return rest, [_call(name, arguments) for name, arguments in found]

    def _all(self) -> str:
        text = self._held
        self._held = ""
        return text

    def _calls(self, text: str) -> tuple[str, list[tuple[str, object]]]:
        syntax = self._syntax
        if syntax.is_list or not syntax.end:
            body = text[len(self._mark) :].strip() if self._mark else text.strip()
            found = _parsed(body)
            calls = [_read(one, syntax) for one in (found if isinstance(found, list) else [found])]
            return ("", [one for one in calls if one is not None]) if None not in calls else (text, [])
        pattern = re.compile(f"{re.escape(self._mark)}(.*?)(?:{re.escape(syntax.end.strip())}|$)", re.DOTALL)
        calls = [_read(_parsed(match.group(1)), syntax) for match in pattern.finditer(text)]
        if None in calls:
            return text, []
        return pattern.sub("", text).strip(), [one for one in calls if one is not None]


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _read(call: object, syntax: Syntax) -> tuple[str, object] | None:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get(syntax.arguments, call.get("arguments", {}))
    return call["name"], arguments


def _call(name: str, arguments: object) -> Json:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": {"name": name, "arguments": text}}
