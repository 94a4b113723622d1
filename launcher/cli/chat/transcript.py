"""Conversations in a file: JSON lines, a row for each, with its messages as OpenAI has them. Knows no model."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence

from launchyard.errors import UserError
from launchyard.storage.local import replace_file

_ROLES = ("system", "user", "assistant", "tool")
_PRIVATE = 0o600
Messages = Sequence[Mapping[str, object]]


class Transcript:
    """The row of one conversation, written anew after each turn; other rows stay as they are. UserError for a bad file.

    `path` always holds whole rows, whatever ends this process: a new file takes the place of the old one.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))
        self._row = b""  # ours, as it stands there; empty before the first turn
        _rows(self.path, self._read())
        self._write(self._read())

    def save(self, messages: Messages) -> None:
        """A conversation in which nobody has spoken leaves no row."""
        spoken = any(message.get("role") == "user" for message in messages)
        row = json.dumps({"messages": list(messages)}, ensure_ascii=False).encode() + b"\n" if spoken else b""
        before = self._read()
        if self._row and (at := before.rfind(self._row)) >= 0:
            self._write(before[:at] + row + before[at + len(self._row) :])
        else:
            self._write(before + row)
        self._row = row

    def begin_row(self, row: bytes) -> None:
        """What is saved next is another conversation; `row`: of one that may stand there already, else empty."""
        self._row = row

    def _read(self) -> bytes:
        """The file, and its last line as a whole one."""
        try:
            with open(self.path, "rb") as file:
                raw = file.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from error
        return raw if raw.endswith(b"\n") or not raw else raw + b"\n"

    def _write(self, raw: bytes) -> None:
        try:
            path = os.path.realpath(self.path)  # a link stays one
            mode = stat.S_IMODE(os.stat(path).st_mode) if os.path.exists(path) else _PRIVATE
            replace_file(path, raw, mode=mode)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error


def read_conversation(path: str) -> tuple[list[Mapping[str, object]], bytes]:
    """The messages of the last row of a file, and its bytes. UserError says what is wrong with the file."""
    path = os.path.abspath(os.path.expanduser(path))
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    rows = _rows(path, raw)
    if not rows:
        raise UserError(f"{path} holds no conversation")
    number, line = rows[-1]
    value = json.loads(line)
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UserError(
            f'{path}:{number} is no conversation; a row is {{"messages": [{{"role": …, "content": …}}, …]}}'
        )
    return [_message(one, f"{path}:{number}, message {place}") for place, one in enumerate(messages, 1)], line + b"\n"


def _rows(path: str, raw: bytes) -> list[tuple[int, bytes]]:
    """Lines that hold something, with their numbers."""
    rows = [(number, line) for number, line in enumerate(raw.split(b"\n"), 1) if line.strip()]
    for number, line in rows:
        try:
            json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path}:{number} is not JSON ({error}); a file of conversations holds JSON lines"
            ) from None
    return rows


def _message(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise UserError(f"{where} is no object with a role and a content")
    role = "system" if value.get("role") == "developer" else value.get("role")
    if role not in _ROLES:
        raise UserError(f"{where} has the role {value.get('role')!r}; allowed are {', '.join(_ROLES)}")
    content = value.get("content")
    if not isinstance(content, str) and not (content is None and value.get("tool_calls")):
        raise UserError(f"{where} has no text as its content")
    return {**value, "role": role}
