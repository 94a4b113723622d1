"""Damage in small files, records and logs: named once by each process that meets it, and passed over if that is safe.

A record is one JSON object. A log has one per line; a line that is none is skipped, and counted.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic_core import from_json

from launchyard.storage.errors import StoreError

JsonObject = dict[str, Any]
_logger = logging.getLogger("launchyard")
_reported: set[str] = set()


def report_damage(fault: str) -> None:
    """Logs a fault, with the file in it, once in a process."""
    if fault not in _reported:
        _reported.add(fault)
        _logger.warning("! damaged  %s", fault)


def reported() -> int:
    """The number of faults that this process has reported."""
    return len(_reported)


UNREADABLE = (IsADirectoryError, NotADirectoryError, PermissionError)


def unreadable(error: OSError) -> bool:
    """Returns True if the place itself is at fault: a folder, a missing right, a bad sector. False for a store."""
    return not isinstance(error, StoreError) and (isinstance(error, UNREADABLE) or error.errno == errno.EIO)


def describe_fault(raw: bytes, error: ValueError) -> str:
    """Returns the reason why some bytes are no JSON, with the place."""
    if not raw.strip(b"\0 \r\n\t"):
        return "it is empty" if not raw else "it holds nothing but NUL bytes or spaces"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is no UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno} is no JSON (character {error.colno})"
    return str(error)


def parse_lines(raw: bytes, is_valid: Callable[[JsonObject], bool]) -> tuple[list[JsonObject], list[int]]:
    """Returns the valid objects of a log, one per line, and the numbers of the lines that hold none.

    A last line that a kill cut short is left out.
    """
    bad: list[int] = []
    return list(stream_objects([raw], is_valid, bad)), bad


def stream_objects(
    blocks: Iterable[bytes], is_valid: Callable[[JsonObject], bool], bad: list[int]
) -> Iterator[JsonObject]:
    """The same of a log that is read block by block: its valid objects; numbers of other lines are added to `bad`."""
    for number, line in enumerate(stream_lines(blocks), start=1):
        row = parse_line(line)
        if row is not None and is_valid(row):
            yield row
        elif line.strip():
            bad.append(number)


def stream_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The complete lines of a log, without their ends.

    NUL bytes in place of a last line are what a power cut leaves, and no line that somebody still writes.
    """
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if b"\0" in rest:
        yield rest


def parse_line(line: bytes) -> JsonObject | None:
    """The object that a line holds; None if it holds none."""
    try:
        row = from_json(line, cache_strings="keys")
    except ValueError:
        row = _parse_anything(line)
    return row if isinstance(row, dict) else None


def _parse_anything(line: bytes) -> object:
    """What json.dumps may write and the fast parser refuses, such as half of a surrogate pair."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def skipped(numbers: list[int]) -> str:
    """`line 7 is skipped`, or `3 lines are skipped, the first is line 7`."""
    if len(numbers) == 1:
        return f"line {numbers[0]} is no row and is skipped"
    return f"{len(numbers)} lines are no rows and are skipped, the first is line {numbers[0]}"
