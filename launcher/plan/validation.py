"""What a recipe wants to measure and to judge by, held against the data that there is. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launchyard.training.recipe import Recipe
from launchyard.training.sections.validation import MAIN, set_and_figure
from launchyard.training.spec import DataSpec


def validation_problems(recipe: Recipe, data: DataSpec) -> Iterator[tuple[str, str]]:
    """Keys that ask for figures that no validation has, and what to do."""
    wanted = recipe.validation
    every = "every_epochs" if wanted.every_epochs is not None else "every_steps"
    if wanted.repeats and not (data.validation or wanted.sets):
        yield f"validation.{every}", "the data has no held-out part; set data.validation, such as 0.05"
    for key, metric in _judged_by(recipe).items():
        if not wanted.repeats:
            section = key.split(".")[0]
            yield f"validation.{every}", f"{section} judges by validations, and there are none; set it"
        if problem := _not_measured(metric, recipe, data):
            yield key, problem


def _judged_by(recipe: Recipe) -> dict[str, str]:
    """Keys that name a figure that decides something, each with that figure."""
    found = {"checkpoint.best_metric": recipe.checkpoint.best_metric} if recipe.checkpoint.keep_best else {}
    if recipe.early_stopping is not None:
        found["early_stopping.metric"] = recipe.early_stopping.metric
    return found


def _not_measured(metric: str, recipe: Recipe, data: DataSpec) -> str | None:
    name, figure = set_and_figure(metric)
    sets = recipe.validation.sets
    if figure != "loss" and recipe.data.kind != "preference":
        return f"{figure} is measured of preferences alone (data.kind: preference); use loss"
    if name == MAIN and sets and not data.validation:
        return f"{metric} is that of data.validation, which holds nothing out; use {next(iter(sets))}.{figure}"
    if name != MAIN and name not in sets:
        there = ", ".join(sets) or "none"
        return f"{metric} is of a set {name}, and validation.sets has no such one (it has: {there}); use {figure}"
    return None
