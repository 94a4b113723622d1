"""The history of a run, attempt by attempt, read from its directory for a report. Draws and prints nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from launchyard.launcher.agent.restart_policy import AGAIN_REASONS
from launchyard.launcher.runs.checkpoints import Saved, list_saved
from launchyard.launcher.runs.facts import RunFacts
from launchyard.launcher.runs.state import RunState, state_of
from launchyard.run import layout
from launchyard.run.events import FINISHED, SAVED, STARTED, VALIDATED
from launchyard.run.goodput import Goodput, cause_between, read_facts, read_goodput
from launchyard.run.lease import last_heartbeat
from launchyard.run.records import Job, OutcomeRecord
from launchyard.run.rundir import RunDir


@dataclass(frozen=True)
class Piece:
    """A part of an attempt's time. `cause`: one of launchyard.run.goodput.CAUSES; Unix seconds."""

    began: float
    ended: float
    cause: str
    label: str


@dataclass(frozen=True)
class AttemptStory:
    """`started_from`: the step from which it went on; `pieces`: its time, and the wait before it."""

    attempt: int
    job: Job
    outcome: OutcomeRecord | None
    rows: list[dict[str, Any]]
    events: list[dict[str, Any]]
    pieces: list[Piece]
    started_from: int | None
    ended: float
    source: str | None = None  # of the state of that step, as the event `started` has it

    @property
    def result(self) -> str:
        """Its end, in a word or two."""
        if self.outcome is None:
            return "no outcome"
        if self.outcome.outcome == "stopped" and self.outcome.reason in AGAIN_REASONS:
            return str(self.outcome.reason)
        return str(self.outcome.outcome)


@dataclass(frozen=True)
class Story:
    """A run. `rows`, `validation`: the surviving history; `recipe`: as it was frozen, in YAML."""

    run: RunDir
    state: RunState
    plan: dict[str, Any]
    recipe: str
    code: dict[str, Any]
    rows: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    attempts: list[AttemptStory]
    goodput: Goodput | None
    saved: list[Saved]

    @property
    def preemptions(self) -> int:
        return sum(one.result in AGAIN_REASONS for one in self.attempts)


def read_story(run: RunDir) -> Story:
    """Reads all of a run's rows, which takes seconds for a long run."""
    state = state_of(run)
    now = time.time() if state.alive else None
    return Story(
        run=run,
        state=state,
        plan=RunFacts(run).plan,
        recipe=_text(run, layout.RECIPE),
        code=_json(run, layout.CODE),
        rows=list(run.rows(layout.STEPS)),
        validation=list(run.rows(layout.VALIDATION)),
        attempts=list(_attempts(run, state)),
        goodput=read_goodput(run, now=now),
        saved=list_saved(run),
    )


def _text(run: RunDir, name: str) -> str:
    try:
        return run.read_text(name)
    except FileNotFoundError:
        return ""


def _json(run: RunDir, name: str) -> dict[str, Any]:
    return run.find_json(name) or {}


def _attempts(run: RunDir, state: RunState) -> Iterator[AttemptStory]:
    before: Any = None
    ended = None
    reached = 0
    submitted = [submission.submitted for submission in run.submissions()]
    for facts in read_facts(run):
        rows = [dict(row) for row in facts.rows]
        events = run.events(facts.attempt)
        job = run.job(facts.attempt)
        began = ended if ended is not None else min([job.created, *submitted])
        waited = "queue" if before is None else cause_between(before)
        ended = _end_of(run, facts.attempt, rows, facts.outcome, alive=state.alive and facts.attempt == state.attempt)
        pieces = [Piece(began, job.created, waited, "waiting")] if job.created > began else []
        pieces += _pieces(job.created, ended, rows, events, reached)
        started = next((event for event in events if event.get("event") == STARTED), {})
        start = int(started["step"]) if started else None
        source = started.get("source")
        yield AttemptStory(facts.attempt, job, facts.outcome, rows, events, pieces, start, ended, source)
        reached = max([reached, *(int(row["step"]) for row in rows)])
        before = facts


def _end_of(
    run: RunDir, attempt: int, rows: Sequence[dict[str, Any]], outcome: OutcomeRecord | None, *, alive: bool
) -> float:
    """The time at which an attempt ended: that of its outcome, else of its last sign of life."""
    if outcome is not None:
        return outcome.time
    if alive:
        return time.time()
    return max([last_heartbeat(run, attempt), run.job(attempt).created, *(float(row["time"]) for row in rows[-1:])])


def _pieces(
    created: float, ended: float, rows: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]], reached: int
) -> Iterator[Piece]:
    """An attempt's own time: start, steps (done again, then new), validations and blocking saves, the end."""
    if not rows:
        yield Piece(created, ended, "start", "starting, without a finished step")
        return
    first = float(rows[0]["time"]) - float(rows[0]["step_seconds"])
    last = float(rows[-1]["time"])
    first = min(max(first, created), last)
    yield Piece(created, first, "start", f"starting, {first - created:.1f} s")
    again = [row for row in rows if int(row["step"]) <= reached]
    middle = float(again[-1]["time"]) if again else first
    if again:
        yield Piece(first, middle, "recomputed", f"steps {again[0]['step']} to {again[-1]['step']} done again")
    if middle < last:
        fresh = [row for row in rows if int(row["step"]) > reached]
        label = f"steps {fresh[0]['step']} to {fresh[-1]['step']}" if fresh else "steps"
        yield Piece(middle, last, "productive", f"{label}, {last - middle:.1f} s")
    yield from _holdups(events, first, ended)
    stopped = any(event.get("event") == FINISHED for event in events)
    if ended > last:
        yield Piece(last, ended, "other" if stopped else "down", "after the last step")


def _holdups(events: Sequence[dict[str, Any]], first: float, ended: float) -> Iterator[Piece]:
    for event in events:
        at = float(event.get("time", 0.0))
        if event.get("event") == VALIDATED:
            seconds = float(event.get("seconds", 0.0))
            label = f"validation {event.get('set') or ''}".rstrip() + f" at step {event['step']}"
            yield Piece(max(first, at - seconds), min(at, ended), "validation", label)
        elif event.get("event") == SAVED:
            seconds = float(event.get("stall_seconds") or 0.0)
            began = at - float(event.get("seconds", 0.0))
            label = f"save of step {event.get('step')}: held up {seconds:.2f} s"
            yield Piece(max(first, began), min(began + seconds, ended), "checkpoint_blocking", label)
