"""Launch, train and never lose a run, from Python: `from launchyard import build, finetune, launch, load, step, train`.

The rooms of the package lie at the top of the repository, where this folder has a link to each of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launchyard.launcher.python.handle import Run
    from launchyard.launcher.python.launch import launch_run as launch
    from launchyard.launcher.watch.finetune import finetune
    from launchyard.launcher.watch.load import load_model as load

__all__ = ["Run", "finetune", "launch", "load"]

_HOMES = {
    "Run": ("launcher.python.handle", "Run"),
    "finetune": ("launcher.watch.finetune", "finetune"),
    "launch": ("launcher.python.launch", "launch_run"),
    "load": ("launcher.watch.load", "load_model"),
}


def __getattr__(name: str) -> Any:
    # Lazy, so that the light files of this package can be imported without torch.
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'launchyard' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"launchyard.{module}"), attribute)
