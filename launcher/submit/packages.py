"""Are the packages there that a recipe's workers will want? Asked before anything is queued, of this Python."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from launchyard.errors import RecipeErrors
from launchyard.host.packages import install_command
from launchyard.launcher.recipe.load import LoadedRecipe

KEYS = ("metrics.trackers", "validation.tasks")


def needs_packages(changes: Iterable[str]) -> bool:
    """Do changed keys of a recipe ask for packages?"""
    return any(key in KEYS for key in changes)


def check_packages(loaded: LoadedRecipe) -> None:
    """RecipeErrors for trackers that are not installed and tasks that cannot be asked: now, and not hours later."""
    _check_trackers(loaded)
    _check_tasks(loaded)


def _check_trackers(loaded: LoadedRecipe) -> None:
    from launchyard.training.telemetry.trackers.open import missing

    if lacking := missing(loaded.recipe.metrics.trackers):
        key = "metrics.trackers"
        verb = "is" if len(lacking) == 1 else "are"
        problem = f"{loaded.origin(key)}: {key}: {', '.join(lacking)} {verb} not installed here"
        raise RecipeErrors([problem], hint=install_command(*lacking))


def _check_tasks(loaded: LoadedRecipe) -> None:
    names = loaded.recipe.validation.tasks
    if not names:
        return
    where = f"{loaded.origin('validation.tasks')}: validation.tasks"
    if find_spec("lm_eval") is None:
        raise RecipeErrors([f"{where}: lm_eval is not installed here"], hint=install_command("evaluate"))
    from launchyard.model.evaluate.tasks import TaskList  # torch with it, some seconds

    try:
        TaskList(names)
    except (OSError, ValueError) as error:
        raise RecipeErrors([f"{where}: {error}"]) from error
