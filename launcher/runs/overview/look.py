"""A run in a store as it is at one moment, for those who only look: nothing is asked twice, and nothing that a listing
or a record has shown already. So the number of requests grows neither with attempts nor with checkpoints.

What begins, claims or resumes asks the run directory itself (run/rundir.py): there a listing may lag.
"""

from __future__ import annotations

import time

from launchyard.run import layout
from launchyard.run.events import FINISHED, REWOUND, SAVED
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from launchyard.storage.damage import JsonObject


def look_at(run: RunDir) -> RunDir:
    """The run for one look; one of this disk as it is."""
    return run if run.local or isinstance(run, Look) else Look(run.url)


class Look(RunDir):
    """Its answers are those of its beginning; make another one for the next look."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._listed: dict[str, list[str]] = {}
        self._born: dict[str, float] = {}  # of files in folders that were listed, by the monotonic clock
        self._found: dict[str, bytes | None] = {}

    def listdir(self, name: str) -> list[str]:
        if name not in self._listed:
            ages = files.list_ages(self.path(name)) if self._may_exist(name) else {}
            now = time.monotonic()
            self._born |= {f"{name}/{base}".lstrip("/"): now - age for base, age in ages.items() if age is not None}
            self._listed[name] = sorted(ages)
        return self._listed[name]

    def age(self, name: str) -> float:
        if not self._may_exist(name):
            raise FileNotFoundError(2, "No such file", self.path(name))
        return time.monotonic() - self._born[name] if name in self._born else super().age(name)

    def exists(self, name: str) -> bool:
        folder, _, base = name.rpartition("/")
        if not self._may_exist(name):
            return False
        return base in self._listed[folder] if folder in self._listed else super().exists(name)

    def read_bytes(self, name: str) -> bytes:
        raw = self._bytes(name)
        if raw is None:
            raise FileNotFoundError(2, "No such file", self.path(name))
        return raw

    def blocks(self, name: str) -> list[bytes]:
        return [self.read_bytes(name)]

    def _bytes(self, name: str) -> bytes | None:
        if name not in self._found:
            try:
                self._found[name] = super().read_bytes(name) if self._may_exist(name) else None
            except FileNotFoundError:
                self._found[name] = None
        return self._found[name]

    def _may_exist(self, name: str) -> bool:
        """Not if the folder around it was listed without it; the run's own folder always is."""
        if not name:
            return True
        folder, _, base = name.rpartition("/")
        if not folder:
            self.listdir("")
        if folder in self._listed:
            return base in self._listed[folder]
        return self._may_exist(folder)

    def attempts(self) -> list[int]:
        """By the listing: attempts have no gaps, so only the last may have a folder and no claim."""
        numbers = sorted(int(name) for name in self.listdir(layout.ATTEMPTS) if name.isdigit())
        while numbers and not self.is_claimed(numbers[-1]):
            numbers.pop()
        return numbers

    def is_claimed(self, attempt: int) -> bool:
        return self._bytes(layout.job(attempt)) is not None  # which is asked for soon

    def events(self, attempt: int) -> list[JsonObject]:
        """Its first part alone, if that tells the end."""
        first = layout.grown_part(layout.events(attempt), 0)
        if layout.attempt_folder(attempt) not in self._listed and self._bytes(first) is not None:
            found = self.events_in(first)
            if any(event["event"] == FINISHED for event in found):
                return found
        return super().events(attempt)

    def told_checkpoint(self) -> int | None:
        outcome = self.outcome()
        if outcome is not None:
            return layout.checkpoint_step((outcome.checkpoint or "").rpartition("/")[2])
        told = None
        for event in self.events(newest) if (newest := max(self.attempts(), default=None)) is not None else ():
            if event["event"] == SAVED:
                told = int(event["step"])
            elif event["event"] == REWOUND:
                told = None
        return told
