"""What a chat shows: answers on standard output as they are written, all else, dimmed, on standard error."""

from __future__ import annotations

import sys
import unicodedata

import click

from launchyard.host.environment import variable
from launchyard.launcher.format import plain


class ChatScreen:
    """silent: of answers; some callers print them in their own way."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        self._is_terminal = sys.stdout.isatty()
        self._has_colours = sys.stderr.isatty() and not variable("NO_COLOR")

    def piece(self, text: str) -> None:
        """Of an answer. A terminal gets no control characters: a model is not to move its cursor."""
        if self._silent:
            return
        if self._is_terminal:
            text = "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) != "Cc")
        encoding = sys.stdout.encoding or "utf-8"
        click.echo(text.encode(encoding, "replace").decode(encoding), nl=False)

    def end_answer(self) -> None:
        if not self._silent:
            click.echo()

    def note(self, text: str) -> None:
        text = plain(text, sys.stderr)
        click.echo(click.style(text, dim=True) if self._has_colours else text, err=True)

    def problem(self, text: str, hint: str | None = None) -> None:
        lines = [("error:", "red", text), *([("hint:", "cyan", hint)] if hint else [])]
        for title, colour, line in lines:
            click.echo(f"{click.style(title, fg=colour) if self._has_colours else title} {line}", err=True)
