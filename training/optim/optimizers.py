"""The optimizers that there are, by the name that a recipe gives them.

To add one: a file beside this one with a class with the interface of training/optim/base.py, a row in OPTIMIZERS,
and its name in the Literal of OptimizerConfig.name (training/sections/optimizer.py). Its state of a parameter is saved
and loaded automatically; model/cost.py counts its memory for a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from launchyard.training.optim.adamw import AdamW
from launchyard.training.optim.base import Optimizer, ParameterGroup, parameter_groups
from launchyard.training.sections.optimizer import OptimizerConfig

OPTIMIZERS: dict[str, Callable[[Sequence[ParameterGroup], OptimizerConfig], Optimizer]] = {
    "adamw": AdamW,
}


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The recipe's optimizer over the parameters of `model` that train."""
    return OPTIMIZERS[config.name](parameter_groups(model, config.weight_decay), config)
