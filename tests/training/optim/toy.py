"""A small model with every kind of parameter, and gradients that do not depend on the number of ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from launchyard.training.optim.base import Optimizer
from launchyard.training.sections.optimizer import OptimizerConfig

# Keys with which every optimizer does all that it can.
FULL: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adafactor": {"weight_decay": 0.1},
    "sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "lion": {},
    "muon": {},
    "adamw-8bit": {},
    "adamw-schedule-free": {},
}
GROUPS = [{"match": "*norm.weight", "lr_scale": 0.5, "weight_decay": 0.01}]


def config_of(name: str, **keys: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"name": name, "lr": 0.02, **FULL[name], **keys})


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(40, 13)
        self.up_proj = nn.Linear(40, 7, bias=False)
        self.wide = nn.Linear(300, 5, bias=False)  # two blocks of 8 bits a row, the second not full
        self.norm = nn.LayerNorm(40)
        self.experts = nn.Module()
        self.experts.weight = nn.Parameter(torch.randn(4, 6, 40))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 40)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(40, 11, bias=False)


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def give_gradients(model: nn.Module, step: int) -> None:
    """The whole gradients of a step, cut as the parameters are."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    for number, p in enumerate(model.parameters()):
        rng = torch.Generator().manual_seed(1000 * step + number)
        grad = torch.randn(p.shape, generator=rng) * 10.0 ** (number % 5 - 3)
        p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if isinstance(p, DTensor) else grad


def make_steps(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        give_gradients(model, step)
        optimizer.step(step, 0.02 / step)
        optimizer.zero_grad()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
