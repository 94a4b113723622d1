"""Functions that a model may call, as OpenAI has them: how they are asked for, shown, and kept to their schemas.

Knows no HTTP. The calls in what comes back are found by model/serve/tool_text.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from launchyard.model.serve.constrained import GrammarConstraint, grammar_of, schema_rule
from launchyard.model.serve.tool_text import HERMES, LLAMA, MISTRAL, ToolParser, ToolSyntax, syntax_of
from launchyard.model.text.chat import Chat
from launchyard.model.text.chat_template import Message
from launchyard.model.text.companions import Json
from launchyard.model.text.tokenizer import Tokenizer

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FUNCTION_KEYS = {"name", "description", "parameters", "strict"}
_CHOICES = 'use "none", "auto", "required", or {"type": "function", "function": {"name": …}}'
_NOTHING: Json = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tools:
    """shown: what the template gets. schemas: of the arguments, by the function's name.

    required: an answer is a call. only: of this function. strict: names of functions whose calls fit their schemas,
    called of the model's own will or not.
    """

    shown: tuple[Json, ...]
    schemas: Mapping[str, Mapping[str, object]]
    strict: frozenset[str] = frozenset()
    required: bool = False
    only: str | None = None
    parallel: bool = True

    @classmethod
    def read(cls, tools: Sequence[object], choice: object = None, *, parallel: bool = True) -> Tools | None:
        """From the fields tools, tool_choice and parallel_tool_calls; None if nothing is to be called.

        ValueError names the field that is at fault.
        """
        functions = [_function(tool, f"tools.{place}") for place, tool in enumerate(tools)]
        names = [str(function["name"]) for function in functions]
        if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
            raise ValueError(f"tools has two functions of the name {twice!r}; calls could not be told apart")
        mode, only = _choice(choice, names)
        if mode == "none" or not functions:
            return None
        shown = tuple(_shown(function) for function in functions)
        schemas = {name: _parameters(function) for name, function in zip(names, functions, strict=True)}
        strict = frozenset(str(function["name"]) for function in functions if function.get("strict"))
        return cls(shown, schemas, strict, required=mode == "required", only=only, parallel=parallel)

    def for_chat(self, chat: Chat, tokenizer: Tokenizer) -> ToolUse:
        """ValueError for a template that does not show tools, or whose calls are not known here."""
        self.check_shown(chat, [{"role": "user", "content": "Hello"}], tokenizer)
        syntax = syntax_of(chat.template(tools=True).text)
        if syntax is None:
            known = ", ".join(f"{one.name} ({one.opening})" for one in (HERMES, LLAMA, MISTRAL))
            raise ValueError(
                f"the chat template of {tokenizer.path} writes calls in a way that is not read here, which is {known}; "
                "leave tools out"
            )
        return ToolUse(self, syntax, chat, tokenizer)

    def check_shown(self, chat: Chat, messages: Sequence[Message], tokenizer: Tokenizer) -> None:
        """ValueError if the prompt of these messages is the same without tools, or lacks one."""
        template = chat.template(tools=True)
        shown = template.render(messages, tools=self.shown, generation_prompt=True)
        is_same = shown == template.render(messages, generation_prompt=True)
        if is_same or not all(name in shown for name in self.schemas):
            raise ValueError(
                f"the chat template of {tokenizer.path} does not show tools to the model; leave tools out, or give a "
                "template that does"
            )


@dataclass(frozen=True)
class ToolUse:
    """Tools in chats of one model."""

    tools: Tools
    syntax: ToolSyntax
    chat: Chat
    tokenizer: Tokenizer

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Of the prompt. ValueError if the template refuses the messages, or does not show the tools beside them."""
        self.tools.check_shown(self.chat, messages, self.tokenizer)
        return self.chat.ids_for_generation(messages, tools=self.tools.shown)

    @property
    def skip_special(self) -> bool:
        """False if a special token marks calls, so that special tokens must be in the text that is parsed."""
        return not self._is_special(self.syntax.opening)

    def parser(self) -> ToolParser:
        """For one answer."""
        return ToolParser(self.syntax, self.tools.schemas, most=1 if self._one_alone else None)

    def constraint(
        self,
        vocab_size: int,
        stop_ids: Collection[int],
        *,
        response_format: Mapping[str, object] | None = None,
    ) -> GrammarConstraint | None:
        """What one answer must look like; None if it may be any. As constraint_for of model/serve/constrained.py.

        Calls come where they are required; else an answer of the response format may be calls instead. Where functions
        are strict, any text may come, and what begins as a call goes on as one.
        """
        grammar = self._grammar(response_format)
        return None if grammar is None else GrammarConstraint(grammar, self.tokenizer, vocab_size, stop_ids)

    # -- grammar -------------------------------------------------------------------------------------------------------
    def _grammar(self, response_format: Mapping[str, object] | None) -> str | None:
        form = None if response_format is None else grammar_of(response_format)
        if self.tools.required:
            return "\n".join(["start: calls", *self._call_rules()])
        if form is None:
            return "\n".join([self._free_answer(), *self._call_rules()]) if self.tools.strict else None
        if response_format is not None and response_format.get("type") == "grammar":
            raise ValueError("a response_format of type grammar cannot be had together with tools; leave one out")
        return "\n".join(["start: calls | other", f"other: {form.removeprefix('start: ')}", *self._call_rules()])

    def _call_rules(self) -> list[str]:
        """Rules of a Lark grammar for `calls`."""
        names = [self.tools.only] if self.tools.only is not None else list(self.tools.schemas)
        rules = [f"calls: {self._calls()}", f"one: {' | '.join(f'one_{place}' for place in range(len(names)))}"]
        rules += [f"one_{place}: {self._call_rule(name)}" for place, name in enumerate(names)]
        return rules

    def _call_rule(self, name: str) -> str:
        """The schema of the arguments gets a name, so that its references to itself do not mean that of the call."""
        is_held = self.tools.required or name in self.tools.strict
        arguments = {**(self.tools.schemas[name] if is_held else {"type": "object"}), "$id": f"urn:function:{name}"}
        schema = {
            "type": "object",
            "properties": {"name": {"const": name}, self.syntax.arguments: arguments},
            "required": ["name", self.syntax.arguments],
            "additionalProperties": False,
        }
        return schema_rule(schema, f"a call of {name}")

    @property
    def _one_alone(self) -> bool:
        """True if an answer has one call; templates of Llama refuse more."""
        return not self.tools.parallel or self.tools.only is not None or self.syntax == LLAMA

    def _calls(self) -> str:
        """The right side of the rule for an answer that is calls, of `one` each."""
        call = f"{self._marker(self.syntax.opening)} {self._behind_marker()}"
        if self.syntax == LLAMA:
            return "one"
        return f'{call} ("\\n" {call})*' if self.syntax == HERMES and not self._one_alone else call

    def _behind_marker(self) -> str:
        if self.syntax == HERMES:
            return f'"\\n" one "\\n" {self._marker(self.syntax.closing)}'
        more = "" if self._one_alone else '(", " one)*'
        return f'" "? "[" one {more} "]"'

    def _free_answer(self) -> str:
        """The first rules for an answer of any text, in which what begins as a call is one."""
        if self.syntax == LLAMA:
            return "start: TEXT | calls\nTEXT: /\\s*([^\\s{](?s:.*))?/"
        opening = self.syntax.opening
        if self._is_special(opening):
            return f"start: TEXT ({self._marker(opening)} {self._behind_marker()} TEXT)*\nTEXT: /(?s:.*)/"
        head = f"head[lazy]: /(?s:.*){re.escape(opening)}/"  # goes on to the first marker, and no further
        return f"start: (head {self._behind_marker()})* TEXT\n{head}\nTEXT: /(?s:.*)/"

    def _marker(self, text: str) -> str:
        number = self.tokenizer.raw.token_to_id(text)
        return f"<[{number}]>" if self._is_special(text) else json.dumps(text)

    def _is_special(self, text: str) -> bool:
        number = self.tokenizer.raw.token_to_id(text)
        added = self.tokenizer.raw.get_added_tokens_decoder()
        return number in added and bool(added[number].special)


# -- what a client may say ---------------------------------------------------------------------------------------------
def _function(tool: object, where: str) -> Mapping[str, object]:
    if not isinstance(tool, Mapping):
        raise ValueError(f"{where} is no object")
    if tool.get("type") != "function":
        raise ValueError(f"{where}.type is {tool.get('type')!r}; tools here are of type function alone")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise ValueError(f"{where}.function is no object; it has a name, a description and parameters")
    if unknown := sorted(function.keys() - _FUNCTION_KEYS):
        known = ", ".join(sorted(_FUNCTION_KEYS))
        raise ValueError(f"{where}.function.{unknown[0]} is not known; it takes {known}")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{where}.function.name is {name!r}; it must be 1 to 64 letters, digits, _ or -")
    if not isinstance(function.get("description"), str | None):
        raise ValueError(f"{where}.function.description is no text")
    if not isinstance(function.get("strict"), bool | None):
        raise ValueError(f"{where}.function.strict is neither true nor false")
    parameters = function.get("parameters")
    if parameters is not None and not (
        isinstance(parameters, Mapping) and parameters.get("type", "object") == "object"
    ):
        raise ValueError(f"{where}.function.parameters is no JSON schema of an object")
    return function


def _parameters(function: Mapping[str, object]) -> Mapping[str, object]:
    given = function.get("parameters")
    return {"type": "object", **given} if isinstance(given, Mapping) else _NOTHING


def _shown(function: Mapping[str, object]) -> Json:
    """As templates take it: with parameters, which many of them write out without a look."""
    kept = {key: value for key, value in function.items() if value is not None and key != "strict"}
    nothing: Json = {"type": "object", "properties": {}}
    return {"type": "function", "function": {"parameters": nothing, **kept}}


def _choice(choice: object, names: Sequence[str]) -> tuple[str, str | None]:
    """none, auto or required, and the one function that is."""
    if choice is None:
        return "auto", None
    if isinstance(choice, str) and choice in ("none", "auto", "required"):
        if choice == "required" and not names:
            raise ValueError('tool_choice is "required", and there are no tools')
        return choice, None
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise ValueError(f"tool_choice is {choice!r}; {_CHOICES}")
    if name not in names:
        raise ValueError(f"tool_choice names {name!r}; the tools are: {', '.join(names) or 'none'}")
    return "required", name
