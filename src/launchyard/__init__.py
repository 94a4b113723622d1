"""Launch, train and never lose a run, from Python: `from launchyard import build, finetune, launch, load, step, train`.

The rooms of the package lie at the top of the repository, where this folder has a link to each of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launchyard.launcher.python.handle import Run
    from launchyard.launcher.python.launch import launch_run as launch
    from launchyard.launcher.python.steps import Built, StepNumbers
    from launchyard.launcher.python.steps import build_parts as build
    from launchyard.launcher.python.steps import take_step as step
    from launchyard.launcher.python.train import Training
    from launchyard.launcher.python.train import train_here as train
    from launchyard.launcher.watch.finetune import finetune
    from launchyard.launcher.watch.load import load_model as load
    from launchyard.training.own.values import RunEnd, StepDone, StopTraining, ValidationDone

__all__ = [
    "Built",
    "Run",
    "RunEnd",
    "StepDone",
    "StepNumbers",
    "StopTraining",
    "Training",
    "ValidationDone",
    "build",
    "finetune",
    "launch",
    "load",
    "step",
    "train",
]

_HOMES = {
    "Built": ("launcher.python.steps", "Built"),
    "Run": ("launcher.python.handle", "Run"),
    "RunEnd": ("training.own.values", "RunEnd"),
    "StepDone": ("training.own.values", "StepDone"),
    "StepNumbers": ("launcher.python.steps", "StepNumbers"),
    "StopTraining": ("training.own.values", "StopTraining"),
    "Training": ("launcher.python.train", "Training"),
    "ValidationDone": ("training.own.values", "ValidationDone"),
    "build": ("launcher.python.steps", "build_parts"),
    "finetune": ("launcher.watch.finetune", "finetune"),
    "launch": ("launcher.python.launch", "launch_run"),
    "load": ("launcher.watch.load", "load_model"),
    "step": ("launcher.python.steps", "take_step"),
    "train": ("launcher.python.train", "train_here"),
}


def __getattr__(name: str) -> Any:
    # Lazy, so that the light files of this package can be imported without torch.
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'launchyard' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"launchyard.{module}"), attribute)
