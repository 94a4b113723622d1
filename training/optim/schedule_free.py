"""Schedule-free AdamW (Defazio et al. 2024): an average of all weights so far takes the place of a falling schedule.

Gradients are taken at y, between the average x and the point z that steps are made from; x is the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from launchyard.training.optim.base import InPlace, ParameterGroup, StateTensor, given
from launchyard.training.parallel import local
from launchyard.training.sections.optimizer import OptimizerConfig


class ScheduleFreeAdamW(InPlace):
    """The parameters are y while it trains, x while it evaluates; x is what is saved and exported.

    The usual code keeps y alone and computes x from it and z when it is asked, and then y from x: each time with other
    rounding. Here x is kept, so that a validation changes no bit of training, and y follows from x and z.
    """

    def __init__(self, groups: Sequence[ParameterGroup], config: OptimizerConfig) -> None:
        super().__init__(groups)
        self._betas = given(config.betas)
        self._eps = given(config.eps)
        self._average: dict[nn.Parameter, Tensor] = {}
        for p, state in self._state.items():
            part = local(p.detach())
            self._average[p] = torch.zeros_like(part)
            for key in ("z", "exp_avg_sq"):
                state[key] = StateTensor(torch.zeros_like(part))
            # The largest learning rate so far, and the sum of weights; on the host, which reads them every step.
            state["weighed"] = StateTensor(torch.zeros(2, dtype=torch.float64), is_whole=True)

    @torch.no_grad()
    def begin(self, *, resumed: bool) -> None:
        for p, average in self._average.items():
            if resumed:
                self._move_to_gradient_point(p)
            else:
                average.copy_(local(p.detach()))
                self._moment(p, "z").copy_(average)

    def weights(self, parameter: nn.Parameter) -> Tensor:
        return self._average.get(parameter, local(parameter.detach()))

    def evaluating(self) -> AbstractContextManager[None]:
        return self._at_average()

    @contextmanager
    def _at_average(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for p, average in self._average.items():
            weight = local(p.detach())
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def step(self, number: int, lr: float) -> None:
        beta2 = self._betas[1]
        shares = {
            p: self._share(self._moment(p, "weighed"), lr * group.lr_scale)
            for group in self._groups
            for p in group.parameters
        }
        for group, p, weight, grad in self._with_gradients():
            squares = self._moment(p, "exp_avg_sq").mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            root = squares.div(1 - beta2**number).sqrt_().add_(self._eps)
            direction = root.reciprocal_().mul_(grad).add_(weight, alpha=group.weight_decay)
            z = self._moment(p, "z").add_(direction, alpha=-lr * group.lr_scale)
            self._average[p].lerp_(z, shares[p])
            self._move_to_gradient_point(p)

    @staticmethod
    def _share(weighed: Tensor, lr: float) -> float:
        """Of this step in the average: steps count by the square of the largest learning rate until then."""
        largest = max(float(weighed[0]), lr)
        total = float(weighed[1]) + largest**2
        weighed[0] = largest
        weighed[1] = total
        return largest**2 / total if total else 0.0

    def _move_to_gradient_point(self, p: nn.Parameter) -> None:
        torch.lerp(self._moment(p, "z"), self._average[p], self._betas[0], out=local(p.detach()))
