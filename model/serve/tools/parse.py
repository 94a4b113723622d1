"""Calls of functions in what a model writes, taken apart from its text as it comes.

Knows no model, no grammar and no HTTP.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from launchyard.model.serve.tools.forms import BLANKS, CallReader, Schemas, ToolSyntax
from launchyard.model.text.companions import Json


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

    A call names one of the functions that have `schemas`; all else stays text, and is given as soon as it is sure that
    it is none. Only blanks around calls are lost. most: calls, after which the rest is dropped; None: any number.
    """

    def __init__(self, syntax: ToolSyntax, schemas: Schemas, *, most: int | None = None) -> None:
        self._syntax = syntax
        self._schemas = schemas
        self._most = most
        self._text = ""  # what is not decided; inside a call from its marker on
        self._blanks = ""  # before it; a call takes them away
        self._at_edge = syntax.bare  # JSON that begins here is a call
        self._reader: CallReader | None = None  # inside a call
        self._marker = 0  # its length
        self.n_calls = 0

    @property
    def is_inside(self) -> bool:
        """True if the text has begun a call, or what may become one."""
        return self._reader is not None

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
        rest = self._text.lstrip(BLANKS + ";" if self.n_calls else BLANKS)
        self._blanks += self._text[: len(self._text) - len(rest)]
        self._text = rest

    def _give(self, n: int, content: list[str]) -> None:
        """Let so many characters be content; blanks at their end wait for what follows."""
        text = self._blanks + self._text[:n]
        self._text = self._text[n:]
        sure = text.rstrip(BLANKS)
        self._blanks = text[len(sure) :]
        content.append(sure)

    # -- inside a call -------------------------------------------------------------------------------------------------
    def _begin(self, marker: int) -> None:
        self._marker = marker
        self._reader = self._syntax.body(self._schemas, marker)

    def _go_on_inside(self, content: list[str], calls: list[ToolCall], final: bool) -> bool:
        assert self._reader is not None
        end = self._reader.find(self._text)
        if end is None:
            return self._refuse(content) if final or self._reader.is_none else False
        after = self._end_of_closing(end, final)
        if after is None:
            return False
        found = self._reader.calls(self._text, end) if after >= 0 else []
        if not found:
            return self._refuse(content)
        for name, arguments in found[: None if self._most is None else self._most - self.n_calls]:
            calls.append(ToolCall(self._new_id(), name, arguments))
            self.n_calls += 1
        self._reader = None
        self._blanks = ""
        self._text = self._text[after:]
        self._at_edge = self._syntax.bare
        return True

    def _end_of_closing(self, end: int, final: bool) -> int | None:
        """Where the text goes on behind a call; None: not known yet; -1: it is not closed as calls are."""
        closing = self._syntax.closing
        if not closing:
            return end
        rest = self._text[end:].lstrip(BLANKS)
        if rest.startswith(closing):
            return len(self._text) - len(rest) + len(closing)
        if closing.startswith(rest) and not final:
            return None
        return -1 if rest else len(self._text)  # some models end their answer instead

    def _refuse(self, content: list[str]) -> bool:
        """It is no call: text up to behind the marker, where another may follow."""
        self._reader = None
        self._at_edge = False
        self._give(max(1, self._marker), content)
        return True

    def _new_id(self) -> str:
        return secrets.token_hex(5)[:9] if self._syntax.short_ids else f"call_{secrets.token_hex(12)}"
