"""The scale of the loss in fp16, whose smallest gradients would be zero else (Micikevicius et al. 2018, section 3.2).

A pure function of what has happened: it starts high, falls where a gradient overflows, and grows after a while
without. Knows no step and no optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.data.reader import Batch
from launchyard.training.objectives.objective import Objective
from launchyard.training.parallel import local

FIRST_SCALE = 65536.0
GROWTH_STEPS = 2000  # without an overflow, after which it doubles
SMALLEST_SCALE = 2.0**-10  # below it the gradient is none, whatever it is multiplied by


def next_scale(scale: float, steps: int, *, overflowed: bool) -> tuple[float, int]:
    """The scale of the next step, and the steps without an overflow since it changed."""
    if overflowed:
        return scale / 2, 0
    if steps + 1 < GROWTH_STEPS:
        return scale, steps + 1
    return scale * 2, 0


@dataclass(frozen=True)
class ScaledObjective:
    """An objective times a power of two, which `unscale` takes off its values and gradients again, without rounding."""

    plain: Objective
    loss_scale: float

    @property
    def figures(self) -> tuple[str, ...]:
        return self.plain.figures

    def parts(self, batch: Batch) -> int:
        return self.plain.parts(batch)

    def __call__(self, model: nn.Module, batch: MicroBatch, scale: float) -> Tensor:
        return self.plain(model, batch, scale * self.loss_scale)

    @torch.no_grad()
    def unscale(self, model: nn.Module, values: Tensor) -> Tensor:
        """The values as they are without the scale; gradients in place."""
        grads = [local(p.grad) for p in model.parameters() if p.grad is not None]
        if grads:
            for grad in grads:
                grad.mul_(1 / self.loss_scale)
        return values / self.loss_scale
