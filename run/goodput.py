"""Accounts for all time of a run since its first submit: productive, or lost to one of several causes.

Goodput is the productive share. Light and pure but for `read_goodput`: works on the files of the run directory, so
finished, live and remote runs are accounted for alike. Knows no processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launchyard.run.events import FINISHED
from launchyard.run.layout import STEPS
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject

CAUSES = {
    "productive": "Steps that the run needed: forward, backward, collectives, optimizer.",
    "queue": "Waiting for a scheduler, from the submit or the loss of the nodes to the claim of an attempt.",
    "start": "From the claim of an attempt to its first step: processes, rendezvous, building, loading.",
    "recomputed": "Steps that an earlier attempt had done already, and had not saved.",
    "checkpoint_blocking": "Steps held up by a save, and the last save of an attempt.",
    "data_wait": "Steps that waited for their batch.",
    "validation": "Measuring the loss on held-out data.",
    "other": "Between steps: rows, events, metrics; and the export at the end.",
    "stopped": "From an end that a person wanted, or the last step, to the next submit.",
    "down": "From the last sign of work of an attempt that failed to the next one.",
}
BY_PHASE = {
    "init": "start",
    "data_wait": "data_wait",
    "forward_backward": "productive",
    "collective_wait": "productive",
    "optimizer": "productive",
    "checkpoint_blocking": "checkpoint_blocking",
    "validation": "validation",
    "other": "other",
}
RECLAIMED = ("preempted", "time limit", "not saved")  # ends by which a scheduler has taken the nodes


@dataclass(frozen=True)
class Goodput:
    """Seconds by cause, for all of a run and for each attempt; they sum to `wall`. Times are Unix seconds."""

    since: float
    until: float
    seconds: dict[str, float]
    by_attempt: dict[int, dict[str, float]] = field(default_factory=dict)
    reached: int = 0  # the highest step that was ever done

    @property
    def wall(self) -> float:
        return self.until - self.since

    @property
    def ratio(self) -> float | None:
        """The productive share of the wall time; None before there is any."""
        return self.seconds["productive"] / self.wall if self.wall > 0 else None


@dataclass(frozen=True)
class AttemptFacts:
    """Records of an attempt. `rows` of steps in their order; `finished`: the event of that name, if there is one."""

    attempt: int
    created: float
    scheduled: bool = False  # its job went through a scheduler's queue
    rows: Iterable[JsonObject] = ()
    finished: Mapping[str, Any] | None = None
    outcome: OutcomeRecord | None = None


class Ledger:
    """The account as it grows. Every second from `since` to `until` has been given to exactly one cause."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.until = since
        self.seconds = dict.fromkeys(CAUSES, 0.0)
        self.by_attempt: dict[int, dict[str, float]] = {}
        self.reached = 0
        self._attempt: int | None = None
        self._reported: dict[str, float] = {}  # phases of this attempt so far
        self._stepped = False

    def spend(self, until: float, cause: str) -> None:
        """All time up to `until` that is not spent yet; clocks of two machines may make that none."""
        if until > self.until:
            self._add(cause, until - self.until)
            self.until = until

    def _add(self, cause: str, seconds: float) -> None:
        self.seconds[cause] += seconds
        if self._attempt is not None:
            mine = self.by_attempt[self._attempt]
            mine[cause] = mine.get(cause, 0.0) + seconds

    def begin(self, attempt: int, created: float, *, waited: str = "queue") -> None:
        """An attempt is claimed; the time until then went to `waited`."""
        self._attempt = None
        self.spend(created, waited)
        self._attempt = attempt
        self._reported = {}
        self._stepped = False
        self.by_attempt.setdefault(attempt, {})

    def row(self, row: Mapping[str, Any]) -> bool:
        """Adds a finished step. Returns True if it had been done already, by an earlier attempt or before a rewind."""
        step = int(row["step"])
        again = step <= self.reached
        self.reached = max(self.reached, step)
        phases = row.get("phases")
        if phases is None:  # written before rows held them
            wait = float(row.get("data_wait_seconds", 0.0))
            phases = {"data_wait": wait, "forward_backward": max(0.0, float(row["step_seconds"]) - wait)}
        self._spend_phases(float(row["time"]), phases, again=again)
        self._stepped = True
        return again

    def finish(self, finished: Mapping[str, Any]) -> None:
        """Adds the end of an attempt that had time to report its seconds by phase."""
        remaining = {name: value - self._reported.get(name, 0.0) for name, value in finished.get("seconds", {}).items()}
        self._spend_phases(float(finished["time"]), remaining, again=False)

    def _spend_phases(self, until: float, phases: Mapping[str, float], *, again: bool) -> None:
        for name, value in phases.items():
            self._reported[name] = self._reported.get(name, 0.0) + value
        gap = until - self.until
        if gap <= 0:
            return
        spent = {name: max(0.0, value) for name, value in phases.items()}
        total = sum(spent.values())
        scale = min(1.0, gap / total) if total else 0.0
        for name, value in spent.items():
            cause = BY_PHASE.get(name, "other")
            self._add("recomputed" if again and cause == "productive" else cause, value * scale)
        self._add("other" if self._stepped else "start", max(0.0, gap - total * scale))  # not -1e-15
        self.until = until

    def end(self, outcome: OutcomeRecord | None, finished: Mapping[str, Any] | None) -> None:
        """Adds the time after the last row of an attempt."""
        if finished is not None:
            self.finish(finished)
        if outcome is not None:
            self.spend(outcome.time, "other" if finished is not None else "down" if self._stepped else "start")

    def idle(self) -> str:
        """Returns the cause of the time between the rows of a running attempt."""
        return "other" if self._stepped else "start"

    def outside(self) -> None:
        """Assigns the time from here on to no attempt."""
        self._attempt = None

    def preview(self, until: float) -> Goodput:
        """As if the attempt had gone on until then, without writing it down."""
        seconds = dict(self.seconds)
        seconds[self.idle()] += max(0.0, until - self.until)
        return Goodput(self.since, max(until, self.until), seconds, {}, self.reached)

    def goodput(self) -> Goodput:
        return Goodput(self.since, self.until, dict(self.seconds), dict(self.by_attempt), self.reached)


def account(submitted: Sequence[float], attempts: Iterable[AttemptFacts]) -> Ledger | None:
    """The ledger up to the last thing known. `submitted`: when jobs were sent to a queue. None if nothing ever was."""
    ledger: Ledger | None = None
    last: AttemptFacts | None = None
    for facts in attempts:
        if ledger is None:
            ledger = Ledger(min([facts.created, *submitted]))
            ledger.begin(facts.attempt, facts.created)
        else:
            assert last is not None
            wait_between(ledger, last, facts.created, submitted)
            ledger.begin(facts.attempt, facts.created, waited=cause_between(last))
        for row in facts.rows:
            ledger.row(row)
        ledger.end(facts.outcome, facts.finished)
        last = facts
    if ledger is None and submitted:
        ledger = Ledger(min(submitted))
    return ledger


def wait_between(ledger: Ledger, last: AttemptFacts, created: float, submitted: Sequence[float]) -> None:
    """A submit between two attempts ends one kind of waiting and begins another."""
    ledger.outside()
    sent = [time for time in submitted if ledger.until < time < created]
    if sent:
        ledger.spend(sent[-1], cause_between(last))
        ledger.spend(created, "queue")


def cause_between(last: AttemptFacts) -> str:
    """Returns the cause of the time between this attempt and the next, if nobody submits the run anew."""
    record = last.outcome
    if record is None:
        return "down"
    if record.reason in RECLAIMED:
        return "queue" if last.scheduled else "down"
    return "down" if record.outcome == "failed" else "stopped"


def read_facts(run: RunDir, *, before: int | None = None) -> Iterable[AttemptFacts]:
    """Yields the records of the attempts of a run, oldest first; only those `before` one."""
    queued = {submission.job_id for submission in run.submissions()}
    for attempt in run.attempts():
        if before is not None and attempt >= before:
            return
        job = run.job(attempt)
        ends = [event for event in run.events(attempt) if event["event"] == FINISHED]
        yield AttemptFacts(
            attempt,
            job.created,
            job.job_id in queued,
            rows=run.attempt_rows(STEPS, attempt),
            finished=ends[-1] if ends else None,
            outcome=run.outcome(attempt),
        )


def read_goodput(
    run: RunDir, *, now: float | None = None, facts: Sequence[AttemptFacts] | None = None
) -> Goodput | None:
    """The account of a run; None if it was never submitted.

    now: of a run that has not ended, count on until then; by default only to the last thing that it has left.
    facts: what read_facts has found, by one who wants to see its rows pass.
    """
    facts = list(read_facts(run)) if facts is None else facts
    submitted = [submission.submitted for submission in run.submissions()]
    ledger = account(submitted, facts)
    if ledger is None:
        return None
    if now is not None and run.outcome() is None:
        if not facts:
            ledger.spend(now, "queue")
        elif facts[-1].outcome is None:
            ledger.spend(now, ledger.idle())
        else:
            wait_between(ledger, facts[-1], now, submitted)
            ledger.spend(now, cause_between(facts[-1]))
    return ledger.goodput()
