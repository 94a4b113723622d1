"""Reads growing files of a run directory: new complete lines, each once, and the newest rows. Knows nothing of their
content.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from launchyard.run import layout
from launchyard.run.layout import is_grown, is_log
from launchyard.run.rows import is_row
from launchyard.run.rundir import RunDir
from launchyard.storage import damage
from launchyard.storage.damage import JsonObject

_BLOCK_BYTES = 1 << 20  # of rows that are read at a time
_LAST_BYTES = 64 << 10


class Tail:
    """New complete lines of one file, since the last call. A file that is not there yet has none."""

    def __init__(self, run: RunDir, name: str) -> None:
        self._run = run
        self._name = name
        self._offset = 0

    def lines(self) -> list[str]:
        raw = self._read()
        end = raw.rfind(b"\n") + 1
        self._offset += end
        return raw[:end].decode(errors="replace").splitlines()

    def rest(self) -> list[str]:
        """Returns the remaining lines of a file that no longer grows, also a last line without its end."""
        raw = self._read()
        self._offset += len(raw)
        return raw.decode(errors="replace").splitlines()

    def _read(self) -> bytes:
        if is_log(self._name):
            return self._run.read_log(self._name, self._offset)
        return self._run.read_from(self._name, self._offset)


class RowTail:
    """New rows of a series of JSONL files: those in a folder whose names begin alike. Only its last file grows."""

    def __init__(self, run: RunDir, folder: str, prefix: str) -> None:
        self._run = run
        self._folder = folder
        self._prefix = prefix
        self._offsets: dict[str, int] = {}
        self._read: set[str] = set()

    def rows(self) -> Iterator[JsonObject]:
        """As they are read, each once. OSError if they cannot be read now, after those that were read before."""
        names = [name for name in self._run.listdir(self._folder) if is_grown(name, self._prefix)]
        for name in names:
            if name not in self._read:
                yield from self._new_rows_of(name)
                if name != names[-1]:  # the next one was there before we read: this one is done
                    self._read.add(name)

    def _new_rows_of(self, name: str) -> Iterator[JsonObject]:
        size = _BLOCK_BYTES
        while True:
            offset = self._offsets.get(name, 0)
            raw = self._run.read_from(f"{self._folder}/{name}", offset, size)
            end = raw.rfind(b"\n") + 1
            self._offsets[name] = offset + end
            yield from self._parsed(raw[:end])
            if len(raw) < size:
                return
            size = _BLOCK_BYTES if end else 2 * size  # a line may be longer than a block

    def _parsed(self, raw: bytes) -> Iterator[JsonObject]:
        bad: list[int] = []
        yield from damage.stream_objects([raw], lambda row: True, bad)
        if bad:
            damage.report_damage(f"{self._run.path(self._folder)}: a line of {self._prefix}* is damaged and is skipped")


def last_rows(run: RunDir, attempts: list[int]) -> list[JsonObject]:
    """The newest rows of the newest attempt that wrote some, oldest first, without reading the whole history."""
    names = run.listdir(layout.METRICS)
    for attempt in reversed(attempts):
        prefix = layout.rows_prefix(layout.STEPS, attempt)
        for name in reversed([name for name in names if is_grown(name, prefix)]):
            try:
                raw = b"\n" + _end_of(run, f"{layout.METRICS}/{name}").partition(b"\n")[2]
            except OSError as error:
                if not damage.unreadable(error):
                    raise
                damage.report_damage(f"{run.path(layout.METRICS)}/{name} cannot be read: {error.strerror}")
                continue
            rows, bad = damage.parse_lines(raw, is_row)
            if bad:
                damage.report_damage(f"{run.path(layout.METRICS)}/{name}: {len(bad)} of its last lines are no rows")
            if rows:
                return rows
    return []


def _end_of(run: RunDir, name: str) -> bytes:
    """The end of a file, with a line feed before the first complete line."""
    if not run.local:
        return b"\n" + run.read_bytes(name)
    with open(run.path(name), "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LAST_BYTES))
        return (b"\n" if size <= _LAST_BYTES else b"") + file.read()
