"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from launchyard.training.batching import Context, sequences_before
from launchyard.training.optim.base import given
from launchyard.training.sections.optimizer import OptimizerConfig, ScheduleConfig


def warmup_steps(schedule: ScheduleConfig, max_steps: int) -> int:
    """Steps of warmup; a number below 1 is a share of the whole run."""
    given_steps = schedule.warmup_steps
    return round(given_steps * max_steps) if isinstance(given_steps, float) and given_steps < 1 else int(given_steps)


def planned_lr(context: Context, step: int) -> float:
    """The recipe's, of the step that follows `step` finished ones."""
    recipe = context.recipe
    return lr_at(
        step,
        max_steps=context.max_steps,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        consumed=partial(sequences_before, recipe.train),
    )


def lr_at(
    step: int,
    *,
    max_steps: int,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    consumed: Callable[[int], int] | None = None,
) -> float:
    """Learning rate of the update that follows `step` finished steps.

    Rises linearly to `lr` at the last warmup step, falls to `min_lr` at the last step (Loshchilov & Hutter 2017);
    inverse-sqrt and constant do not know the last step.
    consumed: by tokens, what the first n steps have read, in any unit; by steps, n itself.
    """
    if schedule.by == "tokens" and consumed is not None:
        share = schedule.warmup_steps < 1
        warmup = schedule.warmup_steps * consumed(max_steps) if share else consumed(int(schedule.warmup_steps))
        return _lr(consumed(step + 1), consumed(max_steps), warmup, consumed(1), optimizer, schedule)
    return _lr(step + 1, max_steps, warmup_steps(schedule, max_steps), 1, optimizer, schedule)


def _lr(
    number: int, total: int, warmup: float, first: int, optimizer: OptimizerConfig, schedule: ScheduleConfig
) -> float:
    """The rate at `number` of `total`, counted in steps or in what they read. first: of the first step."""
    if number <= warmup:
        return optimizer.lr * number / warmup
    if schedule.name == "constant":
        return optimizer.lr
    if schedule.name == "inverse-sqrt":
        return max(schedule.min_lr, optimizer.lr * math.sqrt(max(first, warmup) / number))
    progress = min(1.0, (number - warmup) / max(1, total - warmup))
    return schedule.min_lr + (optimizer.lr - schedule.min_lr) * _remaining(schedule, progress, number / total)


def _remaining(schedule: ScheduleConfig, progress: float, share: float) -> float:
    """1 at the end of the warmup to 0 at the last step. share: of all steps, the warmup included."""
    match schedule.name:
        case "cosine":
            return _fallen("cosine", progress)
        case "polynomial":
            return float((1 - progress) ** given(schedule.power))
        case "wsd":
            decay = given(schedule.decay_share)
            return _fallen(given(schedule.decay_shape), min(1.0, max(0.0, (share - (1 - decay)) / decay)))
        case _:
            return _fallen("linear", progress)


def _fallen(shape: str, progress: float) -> float:
    if shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - (math.sqrt(progress) if shape == "sqrt" else progress)
