"""The checkpoints of a run that count, newest first: one rule for resume, status, lists, loading, export, init_from.

A checkpoint exists once it has a manifest. It counts unless an attempt after the one that committed it went on from
an earlier step: then its commit came late or it was damaged, and the run took another way. Light, and cheap for any
size of model: of a manifest only the first bytes are read, newest first, and of the attempts only the later ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from launchyard.run import events, layout
from launchyard.run.rundir import RunDir
from launchyard.storage.shards import read_attempt


class RunCheckpoints:
    """The checkpoints of one run as they are now."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._events: dict[int, list[dict[str, Any]]] = {}
        self._starts: dict[int, int | None] = {}

    def newest(self) -> int | None:
        """Step of the newest checkpoint that counts; None without one."""
        return next(self.counting(), None)

    def counting(self) -> Iterator[int]:
        """Steps of the checkpoints that count, newest first."""
        for step in self.steps():
            try:
                counts = not self.late(step)
            except FileNotFoundError:  # removed since it was listed
                continue
            if counts:
                yield step

    def steps(self) -> Iterator[int]:
        """Steps of all checkpoints that exist, also of those that do not count; newest first."""
        found = {layout.checkpoint_step(name) for name in self._run.listdir(layout.CHECKPOINTS)} | self._latest_step()
        for step in sorted((step for step in found if step is not None), reverse=True):
            if self._run.exists(layout.manifest(step)):
                yield step

    def late(self, step: int) -> str:
        """The reason why a checkpoint does not count; empty if it counts. FileNotFoundError if it does not exist."""
        attempt = read_attempt(self._run.path(self._run.checkpoint_dir(step)))
        if attempt is None:  # damaged: loading it raises
            return ""
        later = [number for number in self._attempts if number > attempt]
        if not self._is_late(step, later):
            return ""
        by = next(number for number in later if self._went_on_before(number, step))
        start = self._start(by)
        if any(event.get("event") == events.FELL_BACK and event.get("step") == step for event in self._events_of(by)):
            return f"attempt {by} found it damaged and went on from step {start}"
        return f"attempt {attempt} committed it after attempt {by} had gone on from step {start}"

    def _is_late(self, step: int, later: list[int]) -> bool:
        for number in reversed(later):
            if self._went_on_before(number, step):
                return True
            if self._start(number) == step:  # it judged the attempts before it when it loaded this checkpoint
                return False
        return False

    def _went_on_before(self, attempt: int, step: int) -> bool:
        start = self._start(attempt)
        return start is not None and start < step

    def _start(self, attempt: int) -> int | None:
        if attempt not in self._starts:
            self._starts[attempt] = self._run.start_step(attempt)
        return self._starts[attempt]

    def _events_of(self, attempt: int) -> list[dict[str, Any]]:
        if attempt not in self._events:
            self._events[attempt] = self._run.events(attempt)
        return self._events[attempt]

    @cached_property
    def _attempts(self) -> list[int]:
        return self._run.attempts()

    def _latest_step(self) -> set[int | None]:
        """The step that was committed last, for stores and network folders whose listings lag."""
        try:
            return {int(self._run.read_json(layout.LATEST)["step"])}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return set()


def newest_checkpoint(run: RunDir) -> int | None:
    """Step of the newest checkpoint that counts; None without one."""
    return RunCheckpoints(run).newest()


def committed_steps(run: RunDir) -> list[int]:
    """Steps of all checkpoints that exist, also of those that do not count; oldest first."""
    return sorted(RunCheckpoints(run).steps())
