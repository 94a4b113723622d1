"""AdamW (Loshchilov & Hutter 2019) over parameter groups, with its state in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launchyard.training.parallel import local
from launchyard.training.recipe import Optimizer

if TYPE_CHECKING:
    from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (biases, norms) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class AdamW:
    """torch's fused AdamW kernel on this rank's parts of the parameters; bit for bit torch.optim.AdamW(fused=True).

    torch's class imports the compiler when it is made (1 s of every start) and walks DTensors one by one. `moments`
    holds, for each parameter, local tensors that a checkpoint saves and loads; the count of steps is the caller's.
    """

    def __init__(self, groups: list[dict[str, Any]], config: Optimizer) -> None:
        import torch

        self.groups, self._betas, self._eps = groups, config.betas, config.eps
        self.moments = {
            p: {key: torch.zeros_like(local(p.detach())) for key in ("exp_avg", "exp_avg_sq")}
            for group in groups
            for p in group["params"]
        }
        first = next(iter(self.moments.values()))["exp_avg"]
        self._number = torch.zeros((), dtype=torch.float32, device=first.device)

    def step(self, number: int, lr: float) -> None:
        """Update number 1, 2, 3 … from the gradients that there are."""
        import torch

        self._number.fill_(number)
        for group in self.groups:
            trained = [p for p in group["params"] if p.grad is not None and local(p).numel()]
            if not trained:
                continue
            with torch.no_grad():
                torch._fused_adamw_(
                    [local(p.detach()) for p in trained],
                    [local(p.grad) for p in trained],
                    [self.moments[p]["exp_avg"] for p in trained],
                    [self.moments[p]["exp_avg_sq"] for p in trained],
                    [],
                    [self._number] * len(trained),
                    lr=lr,
                    beta1=self._betas[0],
                    beta2=self._betas[1],
                    weight_decay=group["weight_decay"],
                    eps=self._eps,
                    amsgrad=False,
                    maximize=False,
                )

    def zero_grad(self) -> None:
        for p in self.moments:
            p.grad = None


def make_optimizer(model: nn.Module, config: Optimizer) -> AdamW:
    return AdamW(parameter_groups(model, config.weight_decay), config)
