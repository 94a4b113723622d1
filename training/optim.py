"""Parameter groups, the optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from training.config import Optimizer, Schedule

if TYPE_CHECKING:
    import torch
    from torch import nn


def warmup_steps(schedule: Schedule, max_steps: int) -> int:
    """Steps of warmup; a number below 1 is a share of the whole run."""
    given = schedule.warmup_steps
    return round(given * max_steps) if isinstance(given, float) and given < 1 else int(given)


def lr_at(step: int, *, max_steps: int, optimizer: Optimizer, schedule: Schedule) -> float:
    """Learning rate of the update that follows `step` finished steps.

    Rises linearly to `lr` at the last warmup step, falls to `min_lr` at the last step (Loshchilov & Hutter 2017).
    """
    warmup, number = warmup_steps(schedule, max_steps), step + 1
    if number <= warmup:
        return optimizer.lr * number / warmup
    if schedule.name == "constant":
        return optimizer.lr
    progress = min(1.0, (number - warmup) / max(1, max_steps - warmup))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.name == "cosine" else 1 - progress
    return schedule.min_lr + (optimizer.lr - schedule.min_lr) * shape


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; vectors (biases, norms) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """AdamW with its moments in place, so that a checkpoint has something to be loaded into.

    A fresh torch optimizer has no state until its first step: loading into it silently loads nothing.
    """
    import torch

    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )
    for group in optimizer.param_groups:
        for p in group["params"]:
            device = getattr(p, "device", None)
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }
    return optimizer
