"""A sweep at this moment, point by point, read from its runs; and as a table. Starts and stops nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launchyard.launcher.format import count, table
from launchyard.launcher.runs.state import RunState, state_of
from launchyard.launcher.sweep.plan import ReadySweep, value_text
from launchyard.launcher.sweep.record import Sweep, SweepPoint, is_stopped
from launchyard.run import layout
from launchyard.run.rows import is_of_set
from launchyard.storage.damage import JsonObject

NOT_STARTED = "not started"
_LONGEST = 32  # characters of a value in a table


@dataclass(frozen=True)
class PointState:
    """A point at this moment: its keys, the state of its run, and its best loss on held-out data, in nats per token."""

    number: int
    overrides: dict[str, Any]
    run_id: str
    url: str
    state: str
    step: int | None = None
    max_steps: int | None = None
    loss: float | None = None
    best_validation_loss: float | None = None
    best_validation_step: int | None = None
    tokens_per_second: float | None = None
    message: str = ""


def point_states(sweep: Sweep) -> list[PointState]:
    """Reads a few small files a point, and the rows of its validations."""
    return [_point(sweep, point) for point in sweep.points]


def sweep_json(sweep: Sweep) -> JsonObject:
    """The sweep and its points as --json prints them."""
    facts = sweep.model_dump(mode="json", include={"sweep_id", "url", "created", "cluster", "at_once", "design"})
    return {**facts, "stopped": is_stopped(sweep), "points": [asdict(state) for state in point_states(sweep)]}


def sweep_lines(sweep: Sweep) -> list[str]:
    """The sweep as people read it: one row a point, then what became of all."""
    states = point_states(sweep)
    rows = [[*_cells(sweep, state.number, state.overrides), *_measured(state)] for state in states]
    head = ["POINT", *_short(sweep.varied), "STATE", "STEP", "LOSS", "BEST VAL", "TOKENS/S"]
    return [*table(rows, head), "", *_summary(sweep, states)]


def plan_lines(planned: ReadySweep) -> list[str]:
    """The plans of a sweep: one row a point, then what they point out."""
    sweep = planned.sweep
    rows = [
        [
            *_cells(sweep, point.number, point.overrides),
            count(ready.plan.n_params),
            f"{ready.plan.max_steps:,}",
            count(ready.plan.total_tokens),
            str(ready.plan.world_size),
            point.run_id,
        ]
        for point, ready in zip(sweep.points, planned.ready, strict=True)
    ]
    head = ["POINT", *_short(sweep.varied), "PARAMETERS", "STEPS", "TOKENS", "WORKERS", "RUN"]
    return [*table(rows, head), *(f"! {'note':<8} {note}" for note in planned.notes)]


def _point(sweep: Sweep, point: SweepPoint) -> PointState:
    run = sweep.run_of(point)
    common: JsonObject = {"number": point.number, "overrides": point.overrides, "run_id": point.run_id, "url": run.url}
    if not run.exists(layout.PLAN):
        return PointState(**common, state=NOT_STARTED)
    state: RunState = state_of(run)
    measured = filter(is_of_set, run.rows(layout.VALIDATION))
    best = min(measured, key=lambda row: float(row["loss"]), default=None)
    return PointState(
        **common,
        state=state.state,
        step=state.step,
        max_steps=state.max_steps,
        loss=state.loss,
        best_validation_loss=best["loss"] if best else None,
        best_validation_step=best["step"] if best else None,
        tokens_per_second=state.tokens_per_second,
        message=state.message,
    )


def _short(keys: Sequence[str]) -> list[str]:
    """The last part of each key where that is clear."""
    ends = Counter(key.rsplit(".", 1)[-1] for key in keys)
    return [end if ends[end := key.rsplit(".", 1)[-1]] == 1 else key for key in keys]


def _cells(sweep: Sweep, number: int, overrides: JsonObject) -> list[str]:
    texts = [value_text(overrides[key]) if key in overrides else "-" for key in sweep.varied]
    return [str(number), *(text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}" for text in texts)]


def _measured(state: PointState) -> list[str]:
    best = state.best_validation_loss
    return [
        state.state,
        "-" if state.step is None else f"{state.step}" + (f"/{state.max_steps}" if state.max_steps else ""),
        "-" if state.loss is None else f"{state.loss:.4f}",
        "-" if best is None else f"{best:.4f}",
        "-" if state.tokens_per_second is None else count(state.tokens_per_second),
    ]


def _summary(sweep: Sweep, states: Sequence[PointState]) -> list[str]:
    counts = Counter(state.state for state in states)
    n = len(states)
    told = ", ".join(f"{number} {name}" for name, number in counts.most_common())
    lines = [f"{sweep.sweep_id}: {n} point{'s' * (n > 1)}, {told}" + ("; stopped" if is_stopped(sweep) else "")]
    measured = [(state.best_validation_loss, state) for state in states if state.best_validation_loss is not None]
    if measured:
        loss, best = min(measured, key=lambda one: one[0])
        lines.append(f"best: point {best.number}, {loss:.4f} at step {best.best_validation_step}, run {best.run_id}")
    if any(state.state in (NOT_STARTED, "failed", "lost", "stopped", "pending") for state in states):
        lines.append(f"go on: launch sweep --resume {sweep.sweep_id}")
    return lines
