"""Calls of functions in what a model writes, in the three ways that chat templates have for them.

Knows no model, no grammar and no HTTP.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NoReturn

from launchyard.model.text.companions import Json

_BLANKS = " \n\r\t"
_OUTSIDE_STRINGS = '}],:"+-.'  # that JSON has, besides letters, digits and blanks


@dataclass(frozen=True)
class ToolSyntax:
    """How calls stand in a text: behind a marker, as JSON of a name and of arguments under a key.

    bare: an answer may begin with the JSON itself. short_ids: a template of this kind takes ids of nine characters
    alone.
    """

    name: str
    opening: str
    closing: str
    arguments: str
    bare: bool = False
    short_ids: bool = False


HERMES = ToolSyntax("Hermes", "<tool_call>", "</tool_call>", "arguments")
LLAMA = ToolSyntax("Llama 3.1", "<|python_tag|>", "", "parameters", bare=True)
MISTRAL = ToolSyntax("Mistral", "[TOOL_CALLS]", "", "arguments", short_ids=True)


def syntax_of(template: str) -> ToolSyntax | None:
    """That of a chat template, by its text; None for one that is not known here.

    Some have one of the markers, and no JSON behind it: Qwen3-Coder, GLM-4.5, and Mistral since its tokenizer v11.
    """
    if "[TOOL_CALLS]" in template:
        return None if "[ARGS]" in template or "[CALL_ID]" in template else MISTRAL
    if "<tool_call>" in template:
        return None if "<function=" in template or "<arg_key>" in template else HERMES
    return LLAMA if '"parameters": ' in template and '"name": ' in template else None


@dataclass(frozen=True)
class ToolCall:
    """arguments: a JSON object, as text."""

    id: str
    name: str
    arguments: str

    def as_json(self) -> Json:
        """As OpenAI has it in a message."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class ToolText:
    """What has become sure: text of the answer, and calls that are whole."""

    content: str = ""
    calls: tuple[ToolCall, ...] = ()


class ToolParser:
    """Takes an answer apart piece by piece; how it is cut into pieces changes nothing.

    A call is JSON that names one of `names`; all else stays text, and is given as soon as it is sure that it is none.
    Only blanks around calls are lost. most: calls, after which the rest is dropped; None: any number.
    """

    def __init__(self, syntax: ToolSyntax, names: Collection[str], *, most: int | None = None) -> None:
        self._syntax = syntax
        self._names = frozenset(names)
        self._most = most
        self._text = ""  # what is not decided; inside a call from its marker on
        self._blanks = ""  # before it; a call takes them away
        self._at_edge = syntax.bare  # JSON that begins here is a call
        self._json: _JsonEnd | None = None  # inside a call
        self._marker = 0  # its length
        self.n_calls = 0

    @property
    def is_inside(self) -> bool:
        """True if the text has begun a call, or what may become one."""
        return self._json is not None

    @property
    def is_over(self) -> bool:
        """True if nothing that follows counts, so that the text may end here."""
        return self.n_calls == self._most

    def add(self, text: str) -> ToolText:
        self._text += text
        return self._take(final=False)

    def flush(self) -> ToolText:
        """What is left at the end of the answer."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> ToolText:
        content: list[str] = []
        calls: list[ToolCall] = []
        while self._text and not self.is_over:
            went_on = self._go_on_inside(content, calls, final) if self.is_inside else self._go_on(content, final)
            if not went_on:
                break
        if final and not self.is_over and (not self.n_calls or self._blanks.strip()):
            content.append(self._blanks)
            self._blanks = ""
        return ToolText("".join(content), tuple(calls))

    # -- outside of calls ----------------------------------------------------------------------------------------------
    def _go_on(self, content: list[str], final: bool) -> bool:
        """False where more text must come first."""
        if self._at_edge:
            self._hold_blanks()
            if self._text.startswith("{"):
                self._begin(0)
                return True
            self._at_edge = not self._text or (self._may_begin_marker(self._text) and not final)
            if self._at_edge:
                return False
        at = self._text.find(self._syntax.opening)
        if at >= 0:
            self._give(at, content)
            self._begin(len(self._syntax.opening))
            return True
        kept = 0 if final else next((n for n in self._ends() if self._may_begin_marker(self._text[-n:])), 0)
        self._give(len(self._text) - kept, content)
        return False

    def _ends(self) -> range:
        """Lengths of ends of the text that could begin a marker."""
        return range(min(len(self._text), len(self._syntax.opening) - 1), 0, -1)

    def _may_begin_marker(self, text: str) -> bool:
        return self._syntax.opening.startswith(text)

    def _hold_blanks(self) -> None:
        """Take blanks away, and between two calls the semicolon that some models write."""
        rest = self._text.lstrip(_BLANKS + ";" if self.n_calls else _BLANKS)
        self._blanks += self._text[: len(self._text) - len(rest)]
        self._text = rest

    def _give(self, n: int, content: list[str]) -> None:
        """Let so many characters be content; blanks at their end wait for what follows."""
        text = self._blanks + self._text[:n]
        self._text = self._text[n:]
        sure = text.rstrip(_BLANKS)
        self._blanks = text[len(sure) :]
        content.append(sure)

    # -- inside a call -------------------------------------------------------------------------------------------------
    def _begin(self, marker: int) -> None:
        self._marker = marker
        self._json = _JsonEnd(marker)

    def _go_on_inside(self, content: list[str], calls: list[ToolCall], final: bool) -> bool:
        assert self._json is not None
        end = self._json.find(self._text)
        if end is None:
            return self._refuse(content) if final or self._json.is_none else False
        after = self._end_of_closing(end, final)
        if after is None:
            return False
        found = _calls_in(self._text[self._marker : end], self._names) if after >= 0 else []
        if not found:
            return self._refuse(content)
        for name, arguments in found[: None if self._most is None else self._most - self.n_calls]:
            calls.append(ToolCall(self._new_id(), name, arguments))
            self.n_calls += 1
        self._json = None
        self._blanks = ""
        self._text = self._text[after:]
        self._at_edge = self._syntax.bare
        return True

    def _end_of_closing(self, end: int, final: bool) -> int | None:
        """Where the text goes on behind a call; None: not known yet; -1: it is not closed as calls are."""
        closing = self._syntax.closing
        if not closing:
            return end
        rest = self._text[end:].lstrip(_BLANKS)
        if rest.startswith(closing):
            return len(self._text) - len(rest) + len(closing)
        if closing.startswith(rest) and not final:
            return None
        return -1 if rest else len(self._text)  # some models end their answer instead

    def _refuse(self, content: list[str]) -> bool:
        """It is no call: text up to behind the marker, where another may follow."""
        self._json = None
        self._at_edge = False
        self._give(max(1, self._marker), content)
        return True

    def _new_id(self) -> str:
        return secrets.token_hex(5)[:9] if self._syntax.short_ids else f"call_{secrets.token_hex(12)}"


class _JsonEnd:
    """Finds where the JSON object or array that begins behind `at` ends; each character is looked at once."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._depth = 0
        self._in_string = False
        self._end: int | None = None
        self.is_none = False  # what stands there is no JSON

    def find(self, text: str) -> int | None:
        """The place behind its last character, if it is in the text."""
        while self._at < len(text) and self._end is None and not self.is_none:
            letter = text[self._at]
            if self._in_string and letter == "\\":
                if self._at + 1 == len(text):
                    return None
                self._at += 2
                continue
            self._at += 1
            if letter == '"' and self._depth:
                self._in_string = not self._in_string
            elif not self._in_string and self._closes(letter):
                self._end = self._at
        return self._end

    def _closes(self, letter: str) -> bool:
        if letter in "{[":
            self._depth += 1
        elif not self._depth or not (letter.isalnum() or letter in _OUTSIDE_STRINGS):
            self.is_none = letter not in _BLANKS
        elif letter in "}]":
            self._depth -= 1
            return self._depth == 0
        return False


def _calls_in(raw: str, names: Collection[str]) -> Sequence[tuple[str, str]]:
    """Names and arguments of the calls that a JSON text holds; empty if it holds anything else."""
    try:
        value = json.loads(raw, strict=False, parse_constant=_no_number)
        calls = value if isinstance(value, list) else [value]
        found = [_call(call, names) for call in calls]
    except (ValueError, RecursionError):
        return []
    return found


def _call(call: object, names: Collection[str]) -> tuple[str, str]:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or call["name"] not in names:
        raise ValueError("this names no function")
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):  # JSON in JSON, as in what OpenAI answers
        arguments = json.loads(arguments or "{}", parse_constant=_no_number)
    arguments = {} if arguments is None else arguments  # of a function that takes none
    if not isinstance(arguments, dict):
        raise ValueError("arguments are an object")
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    text.encode()  # refuses half a character of UTF-16
    return call["name"], text


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
