"""AdamW (Loshchilov & Hutter 2019) over parameter groups, with its state in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from launchyard.training.optim.base import InPlace, ParameterGroup, StateTensor, given
from launchyard.training.parallel import local
from launchyard.training.sections.optimizer import OptimizerConfig


class AdamW(InPlace):
    """torch's fused AdamW kernel on this rank's parts of the parameters; bit for bit torch.optim.AdamW(fused=True).

    torch's class imports the compiler when it is made (1 s of every start) and walks DTensors one by one.
    """

    def __init__(self, groups: Sequence[ParameterGroup], config: OptimizerConfig) -> None:
        super().__init__(groups)
        self._betas = given(config.betas)
        self._eps = given(config.eps)
        for p, state in self._state.items():
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = StateTensor(torch.zeros_like(local(p.detach())))
        first = local(next(iter(self._state)).detach())
        self._number = torch.zeros((), dtype=torch.float32, device=first.device)

    @torch.no_grad()
    def step(self, number: int, lr: float) -> None:
        self._number.fill_(number)
        for group in self._groups:
            trained = [p for p in group.parameters if p.grad is not None and local(p).numel()]
            if not trained:
                continue
            torch._fused_adamw_(
                [local(p.detach()) for p in trained],
                [local(p.grad) for p in trained],
                [self._moment(p, "exp_avg") for p in trained],
                [self._moment(p, "exp_avg_sq") for p in trained],
                [],
                [self._number] * len(trained),
                lr=lr * group.lr_scale,
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=group.weight_decay,
                eps=self._eps,
                amsgrad=False,
                maximize=False,
            )
