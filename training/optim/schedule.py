"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from launchyard.training.sections.optimizer import OptimizerConfig, ScheduleConfig


def warmup_steps(schedule: ScheduleConfig, max_steps: int) -> int:
    """Steps of warmup; a number below 1 is a share of the whole run."""
    given = schedule.warmup_steps
    return round(given * max_steps) if isinstance(given, float) and given < 1 else int(given)


def lr_at(step: int, *, max_steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Learning rate of the update that follows `step` finished steps.

    Rises linearly to `lr` at the last warmup step, falls to `min_lr` at the last step (Loshchilov & Hutter 2017).
    """
    warmup = warmup_steps(schedule, max_steps)
    number = step + 1
    if number <= warmup:
        return optimizer.lr * number / warmup
    if schedule.name == "constant":
        return optimizer.lr
    progress = min(1.0, (number - warmup) / max(1, max_steps - warmup))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.name == "cosine" else 1 - progress
    return schedule.min_lr + (optimizer.lr - schedule.min_lr) * shape
