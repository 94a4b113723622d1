"""Rows added to a file of the run directory while a run goes on: rows of steps, events. Knows nothing of their content.

Local: whole lines are appended. In a store, where nothing can be appended, lines go into numbered parts: the newest is
replaced as it grows, by a thread, so that a store that does not answer holds up no step.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from typing import Any

from launchyard.run.layout import grown, grown_part, grown_parts
from launchyard.run.rundir import RunDir
from launchyard.storage import files

PART_BYTES = 256 << 10


class Appender:
    """`stem` is the file's name without .jsonl. Lines wait for at most about `flush_seconds`."""

    def __init__(self, run: RunDir, stem: str, *, flush_seconds: float = 0.0) -> None:
        import xxhash

        self._run = run
        self._stem = stem
        self._every = flush_seconds
        self._lines: list[str] = []
        self._in_flight: list[str] = []
        self._lock = threading.Lock()  # of the lines
        self._writing = threading.Lock()  # one flush at a time
        self._flushed = time.monotonic()
        self._part = 0
        self._text = ""
        self._thread: threading.Thread | None = None
        self._count = 0
        self._hash = xxhash.xxh3_64()

    @property
    def name(self) -> str:
        """The file's name, without its folder and .jsonl."""
        return os.path.basename(self._stem)

    def add(self, row: dict[str, Any]) -> None:
        line = json.dumps(row) + "\n"
        with self._lock:
            self._lines.append(line)
            self._count += 1
            self._hash.update(line.encode())
        if self._run.local:
            if time.monotonic() - self._flushed >= self._every:
                with contextlib.suppress(OSError):  # a full disk: no step is lost to it; reported when a save fails
                    self.flush()
        elif self._thread is None:
            self._thread = threading.Thread(target=self._flush_for_ever, name="rows", daemon=True)
            self._thread.start()

    def digest(self) -> tuple[int, str]:
        """Returns the number of all lines so far, written or not, and their xxh3_64."""
        with self._lock:
            return self._count, self._hash.hexdigest()

    def unwritten(self) -> dict[str, list[str]]:
        """Returns the lines of which it is not known that they are written, by the stem; nothing if there are none."""
        with self._lock:
            lines = self._in_flight + self._lines
        return {self._stem: lines} if lines else {}

    def flush(self, *, sync: bool = False) -> None:
        """Write the waiting lines now. OSError if that fails; nothing is lost then, and the next flush retries."""
        with self._writing:
            with self._lock:
                lines = self._lines
                self._in_flight = lines
                self._lines = []
            self._flushed = time.monotonic()
            if not lines:
                return
            try:
                if self._run.local:
                    self._append("".join(lines), sync)
                else:
                    self._grow("".join(lines))
            except BaseException:
                with self._lock:
                    self._lines = lines + self._lines
                    self._in_flight = []
                raise
            with self._lock:
                self._in_flight = []

    def _flush_for_ever(self) -> None:
        while True:
            time.sleep(max(self._every, 0.5))
            with contextlib.suppress(OSError):  # reported by the store; retried next time, and before a commit
                self.flush()

    def _append(self, text: str, sync: bool) -> None:
        _append_to(self._run.path(grown(self._stem)), text, sync=sync)

    def _grow(self, text: str) -> None:
        """A part is never written again after a write of it has failed: that one may still arrive, and late."""
        try:
            self._run.write_text(grown_part(self._stem, self._part), self._text + text)
        except BaseException:
            self._part = self._part + 1
            self._text = ""
            raise
        self._text += text
        if len(self._text) >= PART_BYTES:
            self._part = self._part + 1
            self._text = ""


def _append_to(path: str, text: str, *, sync: bool = False) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            raw = text.encode()
            while raw := raw[file.write(raw) :]:  # whole lines at once, but for a disk that fills up
                pass
            if sync:
                os.fsync(file.fileno())
        except BaseException:
            file.truncate(before)  # they are written again, and half a line would spoil the next one
            raise


def complete_lines(run: RunDir, stem: str, lines: list[str]) -> None:
    """Write what a process that is gone had not written yet; a line that is there already is not written again."""
    if not lines:
        return
    if run.local:
        text = _end_of(run.path(grown(stem)), lines[0])
        missing = _missing(lines, text)
        if missing:
            _append_to(run.path(grown(stem)), ("" if text.endswith("\n") or not text else "\n") + missing)
        return
    folder, _, base = stem.rpartition("/")
    parts = grown_parts(run.listdir(folder), base)
    if missing := _missing(lines, _newest_text(run, stem, parts, lines[0])):
        after = parts[-1] + 2 if parts else 1  # a write of that process to the next one may still arrive
        run.write_text(grown_part(stem, after), missing)


def _missing(lines: list[str], text: str) -> str:
    there = set(text.splitlines(keepends=True))
    return "".join(line for line in lines if line not in there)


def _end_of(path: str, first: str) -> str:
    """The last lines of a local file, back to one that was written before a line; not all of it: runs are long."""
    try:
        size = os.path.getsize(path)
    except FileNotFoundError:
        return ""
    length = PART_BYTES
    while True:
        start = max(0, size - length)
        raw = files.read(path, start)
        text = raw[raw.find(b"\n") + 1 if start else 0 :].decode(errors="replace")
        if not start or _time_of(text) < _time_of(first):
            return text
        length *= 4


def _newest_text(run: RunDir, stem: str, parts: list[int], first: str) -> str:
    """The content of the last parts, back to one that begins before a line."""
    text = ""
    for part in reversed(parts):
        text = run.read_text(grown_part(stem, part)) + text
        if _time_of(text) < _time_of(first):
            break
    return text


def _time_of(text: str) -> float:
    """Of its first line; infinite if that does not tell."""
    try:
        return float(json.loads(text.partition("\n")[0])["time"])
    except (ValueError, KeyError, TypeError):
        return math.inf
