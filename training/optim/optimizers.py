"""The optimizers that there are, by the name that a recipe gives them.

To add one: a file beside this one with a class with the interface of training/optim/base.py, a row in OPTIMIZERS,
its name and its keys in training/sections/optimizer.py, and its bytes in training/optim/state_size.py. Its state of a
parameter is saved and loaded automatically.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from launchyard.training.optim.adafactor import Adafactor
from launchyard.training.optim.adamw import AdamW
from launchyard.training.optim.adamw_8bit import AdamW8bit
from launchyard.training.optim.base import Optimizer, ParameterGroup, parameter_groups
from launchyard.training.optim.lion import Lion
from launchyard.training.optim.muon import Muon
from launchyard.training.optim.schedule_free import ScheduleFreeAdamW
from launchyard.training.optim.sgd import Sgd
from launchyard.training.sections.optimizer import OptimizerConfig

OPTIMIZERS: dict[str, Callable[[Sequence[ParameterGroup], OptimizerConfig], Optimizer]] = {
    "adamw": AdamW,
    "adafactor": Adafactor,
    "sgd": Sgd,
    "lion": Lion,
    "muon": Muon,
    "adamw-8bit": AdamW8bit,
    "adamw-schedule-free": ScheduleFreeAdamW,
}


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The recipe's optimizer over the parameters of `model` that train."""
    return OPTIMIZERS[config.name](parameter_groups(model, config.weight_decay, config.groups), config)
