"""For how long a live run has given no sign, how long it may, and what a sudden end would cost it.

Every age is by one clock, that of the place where the run lies; every distance between two events by that of rank 0.
So no clock is compared with another, and a machine whose clock is wrong raises no alarm.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from launchyard.launcher.runs.state import RunState
from launchyard.run import events, layout
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.training.recipe import Recipe
from launchyard.training.sections.resources import WatchdogConfig
from launchyard.training.spec import Storage

LATE_STEP_SECONDS = 120.0  # a step may always be late by so much
TIMES_STEP = 20.0
SLACK_SECONDS = 120.0  # for the watchdog of the run, which acts first where it can
_AT_A_BOUNDARY = (
    events.VALIDATING, events.VALIDATED, events.ASKING_TASKS, events.TASKS_DONE, events.SAMPLING, events.SAMPLED,
)  # fmt: skip


@dataclass(frozen=True)
class Quiet:
    """Seconds since the newest row or event of an attempt, the most that may be, and those since its last save."""

    seconds: float
    limit: float
    unsaved: float


def quiet_of(run: RunDir, attempt: int, state: RunState, *, recipe: Recipe | None, plan: JsonObject) -> Quiet:
    recorded = run.events(attempt)
    since_event = _age(run, layout.attempt_folder(attempt), layout.EVENTS)
    signs = [
        since_event,
        _age(run, layout.METRICS, layout.rows_prefix(layout.STEPS, attempt)),
        _claim_age(run, attempt),
    ]
    return Quiet(
        seconds=max(0.0, min(signs)),
        limit=_limit(state, recorded, recipe, plan),
        unsaved=max(0.0, _to_the_last_event(recorded) + since_event) if recorded else 0.0,
    )


def _age(run: RunDir, folder: str, prefix: str) -> float:
    """Of the newest file that grows with this prefix; infinite without one."""
    names = sorted(name for name in run.listdir(folder) if layout.is_grown(name, prefix))
    with contextlib.suppress(FileNotFoundError):
        return run.age(f"{folder}/{names[-1]}") if names else float("inf")
    return float("inf")


def _claim_age(run: RunDir, attempt: int) -> float:
    with contextlib.suppress(FileNotFoundError):
        return run.age(layout.job(attempt))
    return float("inf")


def _to_the_last_event(recorded: list[JsonObject]) -> float:
    """Seconds from the last save, or from the state that the attempt went on from, to its last event."""
    saves = [float(event["time"]) for event in recorded if event.get("event") in (events.STARTED, events.SAVED)]
    return float(recorded[-1]["time"]) - saves[-1] if saves else -float("inf")


def _limit(state: RunState, recorded: list[JsonObject], recipe: Recipe | None, plan: JsonObject) -> float:
    """As the recipe's watchdog has it, and somewhat more."""
    watchdog = WatchdogConfig() if recipe is None else recipe.watchdog
    patience = Storage.model_validate(plan.get("storage") or {}).retry_seconds
    slow = max(watchdog.slow_seconds, 3 * patience) + SLACK_SECONDS
    names = {event.get("event") for event in recorded}
    tokens = (plan.get("batch") or {}).get("tokens_per_step")
    trains = events.STARTED in names and not names & {events.STOPPING, events.FINISHED}
    if not trains or not tokens or not state.tokens_per_second or _at_a_boundary(state, recorded):
        return slow
    usual = LATE_STEP_SECONDS + TIMES_STEP * float(tokens) / state.tokens_per_second
    return max(usual, (watchdog.step_seconds or 0.0) + SLACK_SECONDS)


def _at_a_boundary(state: RunState, recorded: list[JsonObject]) -> bool:
    """It validates, asks tasks or writes samples, or did so after the newest step that is known."""
    return any(
        event.get("event") in _AT_A_BOUNDARY and int(event.get("step", 0)) >= (state.step or 0)
        for event in recorded[-8:]
    )
