"""Lion (Chen et al. 2023): the sign of a mean of gradients, and one moment."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from launchyard.training.optim.base import InPlace, ParameterGroup, StateTensor, given
from launchyard.training.parallel import local
from launchyard.training.sections.optimizer import OptimizerConfig


class Lion(InPlace):
    """Every number moves by the learning rate: about a tenth of AdamW's is usual, with a weight decay ten times as
    large."""

    def __init__(self, groups: Sequence[ParameterGroup], config: OptimizerConfig) -> None:
        super().__init__(groups)
        self._betas = given(config.betas)
        for p, state in self._state.items():
            state["exp_avg"] = StateTensor(torch.zeros_like(local(p.detach())))

    @torch.no_grad()
    def step(self, number: int, lr: float) -> None:
        beta1, beta2 = self._betas
        for group, p, weight, grad in self._with_gradients():
            mean = self._moment(p, "exp_avg")
            scaled = lr * group.lr_scale
            weight.mul_(1 - scaled * group.weight_decay)
            weight.add_(mean.lerp(grad, 1 - beta1).sign_(), alpha=-scaled)
            mean.lerp_(grad, 1 - beta2)
