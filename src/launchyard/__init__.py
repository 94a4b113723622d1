"""Launch, train and never lose a run: `from launchyard import finetune, load` trains a model, and gives a ready one.

The rooms of the package lie at the top of the repository, where this folder has a link to each of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launchyard.launcher.watch.finetune import finetune
    from launchyard.launcher.watch.load import load_model as load
    from launchyard.training.own.values import RunEnd, StepDone, StopTraining, ValidationDone

__all__ = ["RunEnd", "StepDone", "StopTraining", "ValidationDone", "finetune", "load"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the light files of this package can be imported without torch.
    if name == "load":
        from launchyard.launcher.watch.load import load_model

        return load_model
    if name == "finetune":
        from launchyard.launcher.watch.finetune import finetune

        return finetune
    if name in ("RunEnd", "StepDone", "StopTraining", "ValidationDone"):
        from launchyard.training.own import values

        return getattr(values, name)
    raise AttributeError(f"module 'launchyard' has no attribute {name!r}")
