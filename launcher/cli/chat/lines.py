"""Messages as they are typed, pasted or piped, line by line. Knows no model and no command but its slash.

On a terminal lines are edited by readline, where Python has it.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from launchyard.storage.local import replace_file

PROMPT = "> "
CONTINUED = ". "
END_OF_MESSAGE = "."
_KEPT_ENTRIES = 1000
_PRIVATE = 0o600
# Gives the next line without its end, after a prompt; None where there is no more.
NextLine = Callable[[str], str | None]


class MessageReader:
    """A message is a line, and the next one where it ends in a backslash; with `multiline` all up to a line of a dot.

    A line that begins with a slash is whole by itself; two stand for one at the beginning of a message.
    """

    def __init__(self, next_line: NextLine, *, multiline: bool = False) -> None:
        self.multiline = multiline
        self._next_line = next_line

    def read(self) -> str | None:
        """None at the end of the input."""
        line = self._next_line(PROMPT)
        if line is None:
            return None
        if self.multiline and (not line.startswith("/") or line.startswith("//")):
            return "\n".join(self._until_dot(line))
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1].removesuffix("\\")
            following = self._next_line(CONTINUED)
            if following is None:
                break
            lines.append(following)
        return "\n".join(lines)

    def _until_dot(self, line: str | None) -> Iterator[str]:
        while line is not None and line != END_OF_MESSAGE:
            yield line
            line = self._next_line(CONTINUED)


def piped_lines(source: IO[str]) -> NextLine:
    """Lines of a stream that is no terminal. ValueError names the line that is not text."""
    number = 0

    def next_line(_prompt: str) -> str | None:
        nonlocal number
        number += 1
        try:
            line = source.readline()
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} of the input, or one soon after it, is not UTF-8") from error
        return line.rstrip("\r\n") if line else None

    return next_line


class TypedLines:
    """Lines of a terminal. `remember` puts a whole message where the arrow keys find it, in later chats, too.

    history: the file that keeps them, for its owner alone.
    """

    def __init__(self, history: Path, completions: Sequence[str]) -> None:
        self.problem = ""  # why messages are not kept for later
        self._history = history
        self._completions = completions
        self._takes_pastes = False
        try:
            import readline
        except ImportError:  # as on Windows
            self._readline = None
        else:
            self._readline = readline
            self._prepare()

    def next_line(self, prompt: str) -> str | None:
        """A paste is one line, with ends of lines in it. KeyboardInterrupt as of input()."""
        try:
            lines = [input(prompt)]
            while not self._takes_pastes and _more_is_there():
                lines.append(input())
        except EOFError:
            print()
            return None
        return "\n".join(lines).rstrip("\n")

    def remember(self, message: str) -> None:
        if self._readline is None or not message.strip():
            return
        self._readline.add_history(message)
        try:
            handle = os.open(self._history, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _PRIVATE)
            with open(handle, "w") as file:
                os.fchmod(handle, _PRIVATE)
                file.write(json.dumps(message) + "\n")
        except OSError as error:
            self.problem = f"messages are not kept for the arrow keys of later chats: {error.strerror}: {self._history}"

    def _prepare(self) -> None:
        assert self._readline is not None
        readline = self._readline
        libedit = "libedit" in (readline.__doc__ or "")
        if not libedit:  # Python turns it off, and pasted lines would be messages of their own
            readline.parse_and_bind("set enable-bracketed-paste on")
            self._takes_pastes = True
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
        readline.set_completer_delims(" \t\n")
        readline.set_completer(self._complete)
        readline.set_auto_history(False)
        for message in self._kept():
            readline.add_history(message)

    def _complete(self, text: str, number: int) -> str | None:
        assert self._readline is not None
        fitting = [word for word in self._completions if word.startswith(text)] if text.startswith("/") else []
        return f"{fitting[number]} " if self._readline.get_begidx() == 0 and number < len(fitting) else None

    def _kept(self) -> list[str]:
        """Earlier messages; the file is cut where it holds far more."""
        try:
            self._history.parent.mkdir(parents=True, exist_ok=True)
            entries = self._history.read_text().splitlines() if self._history.exists() else []
            if len(entries) > 2 * _KEPT_ENTRIES:
                entries = entries[-_KEPT_ENTRIES:]
                replace_file(self._history, ("\n".join(entries) + "\n").encode(), mode=_PRIVATE)
        except OSError as error:
            self.problem = f"earlier messages cannot be read: {error.strerror}: {self._history}"
            return []
        found = []
        for entry in entries[-_KEPT_ENTRIES:]:
            with suppress(ValueError):  # half a line, of a chat that was killed as it wrote
                found.append(str(json.loads(entry)))
        return found


def _more_is_there() -> bool:
    """True if another line has come at once, as of a paste where the terminal does not mark its ends."""
    return bool(select.select([sys.stdin], [], [], 0.01)[0])
