"""AdamW (Loshchilov & Hutter 2019) over parameter groups, with its state in fp32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from launchyard.training.optim.base import ParameterGroup
from launchyard.training.parallel import local
from launchyard.training.sections.optimizer import OptimizerConfig

NOTHING: Mapping[str, Tensor] = {}


class AdamW:
    """torch's fused AdamW kernel on this rank's parts of the parameters; bit for bit torch.optim.AdamW(fused=True).

    torch's class imports the compiler when it is made (1 s of every start) and walks DTensors one by one.
    """

    def __init__(self, groups: Sequence[ParameterGroup], config: OptimizerConfig) -> None:
        self._groups = tuple(groups)
        self._betas = config.betas
        self._eps = config.eps
        self._moments = {
            p: {key: torch.zeros_like(local(p.detach())) for key in ("exp_avg", "exp_avg_sq")}
            for group in groups
            for p in group.parameters
        }
        if not self._moments:
            raise ValueError("no parameter trains: every one is frozen; leave some that are not")
        first = next(iter(self._moments.values()))["exp_avg"]
        self._number = torch.zeros((), dtype=torch.float32, device=first.device)

    def state(self, parameter: nn.Parameter) -> Mapping[str, Tensor]:
        return self._moments.get(parameter, NOTHING)

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
                [self._moments[p]["exp_avg"] for p in trained],
                [self._moments[p]["exp_avg_sq"] for p in trained],
                [],
                [self._number] * len(trained),
                lr=lr,
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=group.weight_decay,
                eps=self._eps,
                amsgrad=False,
                maximize=False,
            )

    def zero_grad(self) -> None:
        for p in self._moments:
            p.grad = None
