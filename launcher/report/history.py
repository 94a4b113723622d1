"""The history of a run, attempt by attempt, read from its directory for a report. Draws and prints nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launchyard.launcher.agent.restart_policy import AGAIN_REASONS
from launchyard.launcher.report.steps import AttemptSteps, Steps
from launchyard.launcher.runs.checkpoints import Saved, list_saved
from launchyard.launcher.runs.facts import RunFacts
from launchyard.launcher.runs.state import RunState, state_of
from launchyard.run import layout
from launchyard.run.events import FINISHED, SAVED, STARTED, VALIDATED
from launchyard.run.goodput import AttemptFacts, Goodput, cause_between, read_facts, read_goodput
from launchyard.run.lease import last_heartbeat
from launchyard.run.records import Job, OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject


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
    steps: AttemptSteps
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
    """A run. `steps`, `validation`: the surviving history; `recipe`: as it was frozen, in YAML."""

    run: RunDir
    state: RunState
    plan: dict[str, Any]
    recipe: str
    code: dict[str, Any]
    steps: Steps
    validation: list[dict[str, Any]]
    attempts: list[AttemptStory]
    goodput: Goodput | None
    saved: list[Saved]

    @property
    def preemptions(self) -> int:
        return sum(one.result in AGAIN_REASONS for one in self.attempts)


def read_story(run: RunDir) -> Story:
    """Reads all of a run's rows once, which takes seconds for a long run, and keeps none."""
    state = state_of(run)
    now = time.time() if state.alive else None
    seen = _Seen(run)
    facts = [seen.passing(one) for one in read_facts(run)]
    goodput = read_goodput(run, now=now, facts=facts)
    return Story(
        run=run,
        state=state,
        plan=RunFacts(run).plan,
        recipe=_text(run, layout.RECIPE),
        code=_json(run, layout.CODE),
        steps=seen.steps,
        validation=list(run.rows(layout.VALIDATION)),
        attempts=list(_attempts(run, state, facts, seen.by_attempt)),
        goodput=goodput,
        saved=list_saved(run),
    )


def _text(run: RunDir, name: str) -> str:
    try:
        return run.read_text(name)
    except FileNotFoundError:
        return ""


def _json(run: RunDir, name: str) -> dict[str, Any]:
    return run.find_json(name) or {}


class _Seen:
    """What is taken from the rows of attempts as they pass on to the account of time."""

    def __init__(self, run: RunDir) -> None:
        self._surviving = run.surviving()
        self._reached = 0
        self.steps = Steps()
        self.by_attempt: dict[int, AttemptSteps] = {}

    def passing(self, facts: AttemptFacts) -> AttemptFacts:
        return replace(facts, rows=self._rows(facts))

    def _rows(self, facts: AttemptFacts) -> Iterator[JsonObject]:
        mine = self.by_attempt[facts.attempt] = AttemptSteps(self._reached)
        surviving = self._surviving.get(facts.attempt)
        for row in facts.rows:
            mine.add(row)
            if surviving is not None and surviving.has(row):
                self.steps.add(row)
            yield row
        self._reached = max(self._reached, mine.highest)


def _attempts(
    run: RunDir, state: RunState, found: Sequence[AttemptFacts], seen: Mapping[int, AttemptSteps]
) -> Iterator[AttemptStory]:
    before: AttemptFacts | None = None
    ended = None
    submitted = [submission.submitted for submission in run.submissions()]
    for facts in found:
        steps = seen[facts.attempt]
        events = run.events(facts.attempt)
        job = run.job(facts.attempt)
        began = ended if ended is not None else min([job.created, *submitted])
        waited = "queue" if before is None else cause_between(before)
        ended = _end_of(run, facts, steps, alive=state.alive and facts.attempt == state.attempt)
        pieces = [Piece(began, job.created, waited, "waiting")] if job.created > began else []
        pieces += _pieces(job.created, ended, steps, events)
        started = next((event for event in events if event.get("event") == STARTED), {})
        start = int(started["step"]) if started else None
        source = started.get("source")
        yield AttemptStory(facts.attempt, job, facts.outcome, steps, events, pieces, start, ended, source)
        before = facts


def _end_of(run: RunDir, facts: AttemptFacts, steps: AttemptSteps, *, alive: bool) -> float:
    """The time at which an attempt ended: that of its outcome, else of its last sign of life."""
    if facts.outcome is not None:
        return facts.outcome.time
    if alive:
        return time.time()
    last = float(steps.last["time"]) if steps.count else 0.0
    return max(last_heartbeat(run, facts.attempt), run.job(facts.attempt).created, last)


def _pieces(created: float, ended: float, steps: AttemptSteps, events: Sequence[dict[str, Any]]) -> Iterator[Piece]:
    """An attempt's own time: start, steps (done again, then new), validations and blocking saves, the end."""
    if not steps.count:
        yield Piece(created, ended, "start", "starting, without a finished step")
        return
    first = float(steps.first["time"]) - float(steps.first["step_seconds"])
    last = float(steps.last["time"])
    first = min(max(first, created), last)
    yield Piece(created, first, "start", f"starting, {first - created:.1f} s")
    again = steps.again
    middle = float(again[-1]["time"]) if again else first
    if again:
        yield Piece(first, middle, "recomputed", f"steps {again[0]['step']} to {again[-1]['step']} done again")
    if middle < last:
        fresh = steps.fresh
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
