"""The states of runs that are over, kept in the user's cache folder until something in the run's folders changes.

Everything that could give a run another state (a resume, a job in a queue, a checkpoint that is removed, a move) makes,
replaces or removes a file in one of a few folders, and so changes the time of that folder. Runs of this disk only: in a
store nothing tells so cheaply. Removing the file costs one slow look at all runs, and nothing else.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from launchyard.host.folders import user_cache_folder
from launchyard.launcher.runs.state import SETTLED_SECONDS, RunState
from launchyard.run import layout
from launchyard.storage import damage, files, local

FILE = "settled.json"
_FOLDERS = ("", layout.ATTEMPTS, layout.SUBMISSIONS, layout.CHECKPOINTS, layout.METRICS)
_ENDED = ("completed", "stopped", "failed")
Seen = list[list[int] | None]  # of each folder: inode, and time of the last change


class Settled:
    """What is kept, as it was found when this was made."""

    def __init__(self) -> None:
        self._path = user_cache_folder() / FILE
        self._maker = [importlib.metadata.version("launchyard"), [field.name for field in fields(RunState)]]
        self._before = self._read()
        self._now: dict[str, Any] = {}

    def _read(self) -> dict[str, Any]:
        try:
            record = json.loads(self._path.read_bytes())
            return dict(record["runs"]) if record["maker"] == self._maker else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def state(self, run_id: str, url: str, judge: Callable[[], RunState | None]) -> RunState | None:
        """The state of a run at a place; `judge` finds it where it is not known."""
        if files.is_remote(url):
            return judge()
        seen = _look(url)
        name = f"{run_id} {url}"  # another run may have taken its place
        kept = self._before.get(name)
        if kept is not None and kept["seen"] == seen:
            self._now[name] = kept
            return RunState(**kept["state"])
        faults = damage.reported()
        state = judge()
        if state is not None and damage.reported() == faults and _is_settled(state):
            self._now[name] = {"seen": seen, "state": state.to_json()}
        return state

    def write(self) -> None:
        """Keeps what was found, if it differs. Where that is not possible, the next look takes as long."""
        if self._now != self._before:
            record = json.dumps({"maker": self._maker, "runs": self._now}).encode()
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                local.replace_file(self._path, record, mode=0o600)


def _is_settled(state: RunState) -> bool:
    """Is it over, and for so long that nothing of it can live, and no change share its time with the last one?"""
    return (
        state.state in _ENDED
        and not state.alive
        and state.since is not None
        and time.time() - state.since > SETTLED_SECONDS
    )


def _look(url: str) -> Seen:
    found: Seen = []
    for folder in _FOLDERS:
        try:
            facts = os.stat(f"{url}/{folder}")
            found.append([facts.st_ino, facts.st_mtime_ns])
        except OSError:
            found.append(None)
    return found
