"""Reads growing files of a run directory: new complete lines, each once. Knows nothing of their content."""

from __future__ import annotations

from launchyard.run.layout import is_grown, is_log
from launchyard.run.rundir import RunDir
from launchyard.storage import damage


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
        self._tails: dict[str, Tail] = {}
        self._read: set[str] = set()
        self._lines: list[str] = []

    def rows(self) -> list[damage.JsonObject]:
        """OSError if they cannot be read now; rows that were read before the error come with the next call."""
        names = [name for name in self._run.listdir(self._folder) if is_grown(name, self._prefix)]
        for name in names:
            if name not in self._read:
                tail = self._tails.setdefault(name, Tail(self._run, f"{self._folder}/{name}"))
                self._lines += tail.lines()
                if name != names[-1]:  # the next one was there before we read: this one is done
                    self._read.add(name)
        lines = self._lines
        self._lines = []
        found, bad = damage.parse_lines("\n".join([*lines, ""]).encode(), lambda row: True)
        if bad:
            damage.report_damage(f"{self._run.path(self._folder)}: a line of {self._prefix}* is damaged and is skipped")
        return found
