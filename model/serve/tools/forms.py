"""The ways in which chat templates have calls written, and how each is read as its text comes.

Knows no model, no grammar and no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from launchyard.model.serve.tools.values import ArgumentSchema, argument_of, arguments_text, json_object

BLANKS = " \n\r\t"
_OUTSIDE_STRINGS = '}],:"+-.'  # that JSON has, besides letters, digits and blanks

Schemas = Mapping[str, ArgumentSchema]  # of arguments, by the function's name
Call = tuple[str, str]  # a name, and arguments as JSON


class CallReader(Protocol):
    """Reads what stands behind one marker."""

    @property
    def is_none(self) -> bool:
        """True if it is no call, whatever may follow."""
        ...

    def find(self, text: str) -> int | None:
        """The place behind it, if it is in the text; that only grows from one time to the next."""
        ...

    def calls(self, text: str, end: int) -> Sequence[Call]:
        """Those that it is; empty if it is none."""
        ...


@dataclass(frozen=True)
class ToolSyntax:
    """How calls stand in a text: behind the marker `opening`, up to `closing` if there is one.

    body: what stands between, of functions with these schemas, from a place of the text on. arguments: their key where
    it is JSON. marks: of the body, which may be special tokens. bare: an answer may begin with the JSON itself.
    short_ids: a template of this kind takes ids of nine characters alone. alone: it refuses more than one call.
    """

    name: str
    opening: str
    closing: str
    body: Callable[[Schemas, int], CallReader]
    arguments: str = "arguments"
    marks: tuple[str, ...] = ()
    bare: bool = False
    short_ids: bool = False
    alone: bool = False


def syntax_of(template: str) -> ToolSyntax | None:
    """That of a chat template, by its text; None for one that is not known here."""
    if "[TOOL_CALLS]" in template:
        if "[CALL_ID]" in template:
            return MISTRAL_IDS
        return MISTRAL_ARGS if "[ARGS]" in template else MISTRAL
    if "<tool_call>" in template:
        if "<function=" in template:
            return QWEN_CODER if "<parameter=" in template else None
        return GLM if "<arg_key>" in template else HERMES
    return LLAMA if '"parameters": ' in template and '"name": ' in template else None


# -- JSON that names the function --------------------------------------------------------------------------------------
class JsonCalls:
    """One call or a list of them, as JSON of a name and of arguments."""

    def __init__(self, schemas: Schemas, at: int) -> None:
        self._schemas = schemas
        self._start = at
        self._json = _JsonEnd(at)

    @property
    def is_none(self) -> bool:
        return self._json.is_none

    def find(self, text: str) -> int | None:
        return self._json.find(text)

    def calls(self, text: str, end: int) -> Sequence[Call]:
        try:
            value = json.loads(text[self._start : end], strict=False)
            return [self._call(call) for call in (value if isinstance(value, list) else [value])]
        except (ValueError, RecursionError):
            return []

    def _call(self, call: object) -> Call:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str) or call["name"] not in self._schemas:
            raise ValueError("this names no function")
        arguments = call.get("arguments", call.get("parameters"))
        if isinstance(arguments, str):  # JSON in JSON, as in what OpenAI answers
            arguments = json.loads(arguments or "{}")
        arguments = {} if arguments is None else arguments  # of a function that takes none
        if not isinstance(arguments, dict):
            raise ValueError("arguments are an object")
        return call["name"], arguments_text(arguments)


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
            self.is_none = letter not in BLANKS
        elif letter in "}]":
            self._depth -= 1
            return self._depth == 0
        return False


# -- a name, and arguments behind marks --------------------------------------------------------------------------------
_Script = Generator[None, None, tuple[str, Mapping[str, object]]]


class _Scan:
    """A text that is still coming, and how far it was read. ValueError where it is not what it should be."""

    def __init__(self, at: int) -> None:
        self.text = ""
        self.at = at

    def blanks(self) -> Generator[None, None, None]:
        """Up to what is none."""
        while True:
            self.at = len(self.text) - len(self.text[self.at :].lstrip(BLANKS))
            if self.at < len(self.text):
                return
            yield

    def one_of(self, words: Sequence[str]) -> Generator[None, None, str]:
        """None of the words begins with another."""
        while True:
            if found := next((word for word in words if self.text.startswith(word, self.at)), None):
                self.at += len(found)
                return found
            rest = self.text[self.at :]
            if not any(word.startswith(rest) for word in words):
                raise ValueError("another text stands here")
            yield

    def until(self, word: str) -> Generator[None, None, str]:
        """The text before a word, behind which it goes on."""
        start = self.at
        while (found := self.text.find(word, self.at)) < 0:
            self.at = max(start, len(self.text) - len(word) + 1)
            yield
        self.at = found + len(word)
        return self.text[start:found]


class ScriptedCall:
    """One call, by a script that goes on as the text does."""

    def __init__(self, script: Callable[[_Scan, Schemas], _Script], schemas: Schemas, at: int) -> None:
        self._scan = _Scan(at)
        self._script = script(self._scan, schemas)
        self._call: Call | None = None
        self.is_none = False

    def find(self, text: str) -> int | None:
        if self._call is None and not self.is_none:
            self._scan.text = text
            try:
                next(self._script)
            except StopIteration as done:
                self._take(*done.value)
            except (ValueError, RecursionError):
                self.is_none = True
        return None if self._call is None else self._scan.at

    def _take(self, name: str, arguments: Mapping[str, object]) -> None:
        try:
            self._call = name, arguments_text(arguments)
        except (ValueError, RecursionError):
            self.is_none = True

    def calls(self, text: str, end: int) -> Sequence[Call]:
        return [] if self._call is None else [self._call]


def _scripted(script: Callable[[_Scan, Schemas], _Script]) -> Callable[[Schemas, int], CallReader]:
    return lambda schemas, at: ScriptedCall(script, schemas, at)


def _named_json(scan: _Scan, schemas: Schemas) -> _Script:
    """weather[ARGS]{"city": "Paris"}, before [ARGS] perhaps [CALL_ID] and an id."""
    yield from scan.blanks()
    head = yield from scan.one_of([name + mark for name in schemas for mark in ("[ARGS]", "[CALL_ID]")])
    name, _, mark = head.partition("[")
    if mark == "CALL_ID]":
        yield from scan.until("[ARGS]")
    end = _JsonEnd(scan.at)
    while (found := end.find(scan.text)) is None:
        if end.is_none:
            raise ValueError("this is no JSON")
        yield
    raw = scan.text[scan.at : found]
    scan.at = found
    return name, json_object(raw)


def _tagged(scan: _Scan, schemas: Schemas) -> _Script:
    """<function=weather><parameter=city>Paris</parameter></function>, a new line around each part."""
    yield from scan.blanks()
    head = yield from scan.one_of([f"<function={name}>" for name in schemas])
    name = head.removeprefix("<function=").removesuffix(">")
    found: dict[str, object] = {}
    while True:
        yield from scan.blanks()
        if (yield from scan.one_of(("<parameter=", "</function>"))) == "</function>":
            return name, found
        key = yield from scan.until(">")
        raw = yield from scan.until("</parameter>")
        found[key] = _argument(schemas[name], key, raw.removeprefix("\n").removesuffix("\n"))


def _keyed(scan: _Scan, schemas: Schemas) -> _Script:
    """weather<arg_key>city</arg_key><arg_value>Paris</arg_value> up to the closing, perhaps with blanks between."""
    yield from scan.blanks()
    name = (yield from scan.one_of([name + after for name in schemas for after in (*BLANKS, "<")]))[:-1]
    scan.at -= 1
    found: dict[str, object] = {}
    while True:
        yield from scan.blanks()
        if (yield from scan.one_of(("<arg_key>", GLM.closing))) == GLM.closing:
            scan.at -= len(GLM.closing)
            return name, found
        key = yield from scan.until("</arg_key>")
        yield from scan.blanks()
        yield from scan.one_of(("<arg_value>",))
        raw = yield from scan.until("</arg_value>")
        found[key] = _argument(schemas[name], key, raw)


def _argument(schema: ArgumentSchema, key: str, raw: str) -> object:
    properties = schema.get("properties")
    return argument_of(raw, properties.get(key) if isinstance(properties, Mapping) else None, schema)


HERMES = ToolSyntax("Hermes", "<tool_call>", "</tool_call>", JsonCalls)
LLAMA = ToolSyntax("Llama 3.1", "<|python_tag|>", "", JsonCalls, arguments="parameters", bare=True, alone=True)
MISTRAL = ToolSyntax("Mistral", "[TOOL_CALLS]", "", JsonCalls, short_ids=True)
MISTRAL_ARGS = ToolSyntax(
    "Mistral since 2025", "[TOOL_CALLS]", "", _scripted(_named_json), marks=("[ARGS]",), short_ids=True
)
MISTRAL_IDS = ToolSyntax(
    "Mistral with ids", "[TOOL_CALLS]", "", _scripted(_named_json), marks=("[ARGS]", "[CALL_ID]"), short_ids=True
)
QWEN_CODER = ToolSyntax("Qwen3-Coder", "<tool_call>", "</tool_call>", _scripted(_tagged))
GLM = ToolSyntax(
    "GLM-4.5",
    "<tool_call>",
    "</tool_call>",
    _scripted(_keyed),
    marks=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)
SYNTAXES = (HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, MISTRAL_IDS, QWEN_CODER, GLM)
