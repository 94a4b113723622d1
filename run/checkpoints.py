"""The checkpoints of a run that count, newest first: one rule for resume, status, lists, loading, export, init_from.

A checkpoint exists once it has a manifest. It counts unless it is of another run, or an attempt after the one that
committed it went on from an earlier step: its commit came late, it was damaged, or somebody went back on purpose.
Light, and cheap for any size of model: of a manifest only the first bytes are read, newest first, and of the attempts
only the later ones. But none is passed over by bytes whose seal nobody has checked: a bit that flips on the way would
cost the run all that it has done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from launchyard.run import events, layout
from launchyard.run.records import FROM_MEMORY
from launchyard.run.rows import judged_value
from launchyard.run.rundir import RunDir
from launchyard.storage.at_once import at_once
from launchyard.storage.errors import DamagedError
from launchyard.storage.shards import ManifestHead, read_checked_head, read_head


class RunCheckpoints:
    """The checkpoints of one run as they are now."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._events: dict[int, list[dict[str, Any]]] = {}
        self._heads: dict[int, ManifestHead | None] = {}
        self._checked: set[int] = set()  # of these the seal was
        self._starts: dict[int, int | None] = {}

    def newest(self) -> int | None:
        """Step of the newest checkpoint that counts; None without one."""
        return next(self.counting(), None)

    def counting(self) -> Iterator[int]:
        """Steps of the checkpoints that count, newest first."""
        yield from (step for step in self._found() if self.counts(step))

    def counts(self, step: int) -> bool:
        """Does a checkpoint exist, and count?"""
        try:
            return not self.late(step)
        except FileNotFoundError:
            return False

    def steps(self) -> Iterator[int]:
        """Steps of all checkpoints that exist, also of those that do not count; newest first."""
        yield from (step for step in self._found() if self._run.exists(layout.manifest(step)))

    def _found(self) -> list[int]:
        """Steps that have a folder, and perhaps a checkpoint; newest first."""
        at_once(self._run.url, lambda: self._listed, lambda: self._latest)
        return sorted(self._listed | self._latest, reverse=True)

    def look_ahead(self) -> None:
        """Asks at once for what decides which checkpoints count, where a store would be asked for one after the other.

        It is called where a run starts, which waits for the answers.
        """
        at_once(
            self._run.url,
            lambda: self._attempts,
            lambda: self._rollbacks,
            lambda: self._run_id,
            lambda: self._listed,
            lambda: self._latest,
        )

    def late(self, step: int) -> str:
        """The reason why a checkpoint does not count; empty if it counts. FileNotFoundError if it does not exist."""
        return self._checked_verdict(self._judge, step)

    def foreign(self, step: int) -> str:
        """`is of another run, NAME`, if a checkpoint says so; empty if not. FileNotFoundError if it does not exist."""
        return self._checked_verdict(self._judge_run, step)

    def _checked_verdict(self, judge: Callable[[int], str], step: int) -> str:
        """What is held against a checkpoint, by a manifest that is whole; empty if nothing is."""
        verdict = judge(step)
        if not verdict or step in self._checked:
            return verdict
        self._checked.add(step)
        self._heads[step] = read_checked_head(self._run.path(self._run.checkpoint_dir(step)))
        return judge(step)

    def _judge(self, step: int) -> str:
        head = self._head(step)
        if head is None:  # damaged: loading it raises
            return ""
        if other := self._judge_run(step):
            return other
        attempt = head.attempt
        for rollback in self._rollbacks:
            if attempt < rollback.attempt and step > rollback.step:
                return f"attempt {rollback.attempt} went back to step {rollback.step} on purpose"
        later = [number for number in self._attempts if number > attempt]
        if not self._is_late(step, later):
            return ""
        by = next(number for number in later if self._went_on_before(number, step))
        start = self._start(by)
        if any(event.get("event") == events.FELL_BACK and event.get("step") == step for event in self._events_of(by)):
            return f"attempt {by} found it damaged and went on from step {start}"
        return f"attempt {attempt} committed it after attempt {by} had gone on from step {start}"

    def left_behind(self, step: int, attempt: int, taken: float) -> bool:
        """Has the run gone another way since an attempt had that state, at that time?"""
        if any(attempt < rollback.attempt and step > rollback.step for rollback in self._rollbacks):
            return True
        if any(self._went_on_before(number, step) for number in self._attempts if number > attempt):
            return True
        back = (event for event in self._events_of(attempt) if event["event"] == events.REWOUND)
        return any(int(event["step"]) < step and float(event["time"]) > taken for event in back)

    def _is_late(self, step: int, later: list[int]) -> bool:
        for number in reversed(later):
            if self._went_on_before(number, step):
                return True
            if self._start(number) == step and not self._from_memory(number):
                return False  # it judged the attempts before it when it loaded this checkpoint
        return False

    def _went_on_before(self, attempt: int, step: int) -> bool:
        start = self._start(attempt)
        return start is not None and start < step

    def _start(self, attempt: int) -> int | None:
        if attempt not in self._starts:
            self._starts[attempt] = self._run.start_step(attempt)
        return self._starts[attempt]

    def _from_memory(self, attempt: int) -> bool:
        """Did an attempt go on from a state that no checkpoint holds?"""
        started = (event for event in self._events_of(attempt) if event["event"] == events.STARTED)
        return any(event.get("source") == FROM_MEMORY for event in started)

    def _events_of(self, attempt: int) -> list[dict[str, Any]]:
        if attempt not in self._events:
            self._events[attempt] = self._run.events(attempt)
        return self._events[attempt]

    def _judge_run(self, step: int) -> str:
        head = self._head(step)
        if head is None or not self._run_id or head.run_id in ("", self._run_id):
            return ""
        return f"is of another run, {head.run_id}"

    def _head(self, step: int) -> ManifestHead | None:
        if step not in self._heads:
            self._heads[step] = read_head(self._run.path(self._run.checkpoint_dir(step)))
        return self._heads[step]

    def missing(self) -> int | None:
        """The step of the newest checkpoint by the records of the run, if it is gone or does not count; None if not.

        Retention removes older ones only, so somebody else did.
        """
        expected = self._expected()
        if not expected or (self.newest() or 0) >= expected:
            return None
        if self._run.exists(layout.manifest(expected)) and not self.late(expected):  # a listing lags
            return None
        return expected

    def _expected(self) -> int:
        """The newest step that was saved by the events of the newest attempt that got so far; 0 without one.

        An attempt that went on from memory tells what it has saved itself; before that, the attempts before it do.
        """
        back: list[int] = []
        limit: float = math.inf
        for attempt in reversed(self._attempts):
            if (start := self._start(attempt)) is None:
                continue
            back += [rollback.step for rollback in self._rollbacks if rollback.attempt > attempt]
            from_memory = self._from_memory(attempt)
            saved = [step for step in self._saved_in(attempt, [] if from_memory else [start]) if step <= limit]
            if saved or not from_memory:
                return min([max(saved, default=0), *back])
            limit = min(limit, start)
        return 0

    def _saved_in(self, attempt: int, saved: list[int]) -> list[int]:
        """Steps that an attempt has gone on from or saved, and has not taken back."""
        for event in self._events_of(attempt):
            if event["event"] == events.SAVED:
                saved.append(int(event["step"]))
            elif event["event"] == events.REWOUND:
                saved = [step for step in saved if step <= int(event["step"])]
        return saved

    @cached_property
    def _rollbacks(self) -> list[Rollback]:
        return rollbacks(self._run)

    @cached_property
    def _run_id(self) -> str:
        return str((self._run.find_json(layout.PLAN) or {}).get("run_id") or "")

    @cached_property
    def _attempts(self) -> list[int]:
        return self._run.attempts()

    @cached_property
    def _listed(self) -> set[int]:
        found = (layout.checkpoint_step(name) for name in self._run.listdir(layout.CHECKPOINTS))
        return {step for step in found if step is not None}

    @cached_property
    def _latest(self) -> set[int]:
        """The step that was committed last, for stores and network folders whose listings lag."""
        try:
            return {int(self._run.read_json(layout.LATEST)["step"])}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return set()


def best_checkpoint(run: RunDir, *, metric: str, high: bool) -> int | None:
    """Step of the checkpoint that counts whose validation was the best, of equals the earlier; None without one."""
    counting = set(RunCheckpoints(run).counting())
    figures = [(judged_value(row, metric), int(row["step"])) for row in run.rows(layout.VALIDATION)]
    judged = [(-one if high else one, step) for one, step in figures if one is not None and step in counting]
    return min(judged)[1] if judged else None


def newest_checkpoint(run: RunDir) -> int | None:
    """Step of the newest checkpoint that counts; None without one."""
    checkpoints = RunCheckpoints(run)
    told = run.told_checkpoint()
    return told if told is not None and checkpoints.counts(told) else checkpoints.newest()


def committed_steps(run: RunDir) -> list[int]:
    """Steps of all checkpoints that exist, also of those that do not count; oldest first."""
    return sorted(RunCheckpoints(run).steps())


# -- going back on purpose -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rollback:
    """From `attempt` on, the run goes on from `step`; 0: from the beginning."""

    attempt: int
    step: int


def rollbacks(run: RunDir) -> list[Rollback]:
    """All rollbacks of a run, oldest first. Raises DamagedError: without them the newest checkpoint is not known."""
    try:
        record = run.read_json(layout.ROLLBACKS)
    except FileNotFoundError:
        return []
    try:
        return [Rollback(int(one["attempt"]), int(one["step"])) for one in record["rollbacks"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{run.path(layout.ROLLBACKS)} is damaged; restore it, or remove it") from error


def record_rollback(run: RunDir, step: int) -> Rollback:
    """Records that the next attempt goes on from `step`."""
    attempts = run.attempts()
    following = Rollback(attempts[-1] + 1 if attempts else 0, step)
    _write_rollbacks(run, [one for one in rollbacks(run) if one.attempt < following.attempt] + [following])
    return following


def forget_rollback(run: RunDir, rollback: Rollback) -> None:
    """Takes back a rollback whose attempt could not be submitted."""
    _write_rollbacks(run, [one for one in rollbacks(run) if one != rollback])


def _write_rollbacks(run: RunDir, kept: list[Rollback]) -> None:
    run.write_json(layout.ROLLBACKS, {"rollbacks": [asdict(one) for one in kept]}, sync=True)
