"""The figures of a recipe out of the rows of its trial: speed, operations, phases, memory. Pure: tries nothing."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launchyard.launcher.plan.plan import Plan
from launchyard.launcher.trial.trial import TrialOutcome
from launchyard.model import cost

WARM_STEPS = 2  # at the beginning: they allocate, and compile


@dataclass(frozen=True)
class Spread:
    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Figures:
    """Of one recipe, in however many trials. Tokens are those of all workers, memory is of one worker.

    peak: bytes of its process, on a GPU of tensors there. tensors: of their storages, None where they were not counted.
    """

    plan: Plan
    n_steps: int
    tokens_per_second: Spread
    step_seconds: Spread
    tokens_per_cpu_second: float | None
    flops_per_token: float
    causal_flops_per_token: float
    phases: Mapping[str, float]
    peak: int | None
    tensors: int | None


def figures_of(outcomes: Sequence[TrialOutcome]) -> Figures | None:
    """Of all its trials together; None where none made a step after the first ones."""
    made = [one for one in outcomes if len(one.rows) > WARM_STEPS]
    rows = [row for one in made for row in one.rows[WARM_STEPS:]]
    if not rows:
        return None
    plan = made[0].plan
    tokens = [row["tokens_per_second"] * row["step_seconds"] for row in rows]
    labels = sum(row["labels"] for row in rows) / sum(tokens)
    spared = (1 - labels) * cost.flops_per_label(plan.model, plan.adapter)
    length = plan.batch.seq_len
    return Figures(
        plan=plan,
        n_steps=len(rows),
        tokens_per_second=_spread([row["tokens_per_second"] for row in rows]),
        step_seconds=_spread([row["step_seconds"] for row in rows]),
        tokens_per_cpu_second=_per_cpu_second(made),
        flops_per_token=cost.flops_per_token(plan.model, length, plan.adapter) - spared,
        causal_flops_per_token=cost.causal_flops_per_token(plan.model, length, plan.adapter) - spared,
        phases=_shares([row["phases"] for row in rows]),
        peak=max((one.peak for one in made if one.peak is not None), default=None),
        tensors=max((held for one in made if (held := _tensors(one)) is not None), default=None),
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def _per_cpu_second(made: Sequence[TrialOutcome]) -> float | None:
    """Of all workers, by the CPU seconds of the first; waiting takes hardly any."""
    rates = [
        row["tokens_per_second"] * row["step_seconds"] / (seconds * one.plan.world_size)
        for one in made
        for row, seconds in list(zip(one.rows, one.cpu_seconds, strict=False))[WARM_STEPS:]
        if seconds > 0
    ]
    return statistics.median(rates) if rates else None


def _shares(laps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    seconds: dict[str, float] = defaultdict(float)
    for lap in laps:
        for phase, spent in lap.items():
            seconds[phase] += spent
    total = sum(seconds.values())
    return {phase: spent / total for phase, spent in sorted(seconds.items(), key=lambda item: -item[1])}


def _tensors(one: TrialOutcome) -> int | None:
    return one.peak if one.plan.device == "cuda" else one.tensors
