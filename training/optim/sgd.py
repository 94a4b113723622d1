"""Stochastic gradient descent, with a momentum if one is asked for (Sutskever et al. 2013)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from launchyard.training.optim.base import InPlace, ParameterGroup, StateTensor, given
from launchyard.training.parallel import local
from launchyard.training.sections.optimizer import OptimizerConfig


class Sgd(InPlace):
    """As torch.optim.SGD: weight decay is part of the gradient, and goes into the momentum."""

    def __init__(self, groups: Sequence[ParameterGroup], config: OptimizerConfig) -> None:
        super().__init__(groups)
        self._momentum = given(config.momentum)
        self._nesterov = given(config.nesterov)
        for p, state in self._state.items() if self._momentum else ():
            state["momentum"] = StateTensor(torch.zeros_like(local(p.detach())))

    @torch.no_grad()
    def step(self, number: int, lr: float) -> None:
        for group, p, weight, grad in self._with_gradients():
            if group.weight_decay:
                grad.add_(weight, alpha=group.weight_decay)
            if self._momentum:
                momentum = self._moment(p, "momentum").mul_(self._momentum).add_(grad)
                grad = grad.add_(momentum, alpha=self._momentum) if self._nesterov else momentum
            weight.add_(grad, alpha=-lr * group.lr_scale)
