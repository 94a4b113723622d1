"""Reading what grows: new whole lines of files in a run directory, each line once. Knows nothing of their content."""

from __future__ import annotations

import json
from typing import Any

from training.rundir import RunDir


class Tail:
    """New whole lines of one file, since the last call. A file that is not there yet has none."""

    def __init__(self, run: RunDir, name: str) -> None:
        self._run, self._name, self._offset = run, name, 0

    def lines(self) -> list[str]:
        raw = self._read()
        whole = raw.rfind(b"\n") + 1
        self._offset += whole
        return raw[:whole].decode(errors="replace").splitlines()

    def rest(self) -> list[str]:
        """What is left when nobody writes any more: also a last line without its end."""
        raw = self._read()
        self._offset += len(raw)
        return raw.decode(errors="replace").splitlines()

    def _read(self) -> bytes:
        if self._name.endswith(".log"):
            return self._run.read_log(self._name, self._offset)
        return self._run.read_from(self._name, self._offset)


class RowTail:
    """New rows of a series of JSONL files: those in a folder whose names begin alike."""

    def __init__(self, run: RunDir, folder: str, prefix: str) -> None:
        self._run, self._folder, self._prefix = run, folder, prefix
        self._tails: dict[str, Tail] = {}

    def rows(self) -> list[dict[str, Any]]:
        for name in self._run.listdir(self._folder):
            if name.startswith(self._prefix) and name.endswith(".jsonl") and name not in self._tails:
                self._tails[name] = Tail(self._run, f"{self._folder}/{name}")
        return [json.loads(line) for _, tail in sorted(self._tails.items()) for line in tail.lines() if line.strip()]
