"""Beginning a run that trains inside another program, or going on with it: all that a launch or a resume checks.

`start` claims the attempt, in place of a scheduler. `workers` says how many there are: the recipe's own resources do
not count where the workers are there already.
"""

from __future__ import annotations

from collections.abc import Mapping

from launchyard.launcher.backends.cluster import load_cluster, reach_storage, recipe_defaults
from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.recipe.load import LoadedRecipe, check_recipe, load_recipe
from launchyard.launcher.runs.start_from import with_found_files
from launchyard.launcher.runs.state import state_of
from launchyard.launcher.submit import resume
from launchyard.launcher.submit.changes import changes_between, refuse_another_run
from launchyard.launcher.submit.launch import (
    NewFolder,
    Request,
    Start,
    check_free,
    make_ready,
    submit,
)
from launchyard.launcher.submit.room import check_room
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.training.recipe import overrides_of, stored_recipe

RecipeSource = str | Mapping[str, object]
_OF_WORKERS = "resources."


def begin_run(url: str | None, source: RecipeSource, overrides: JsonObject, *, workers: int, start: Start) -> RunDir:
    """A new run, and its first attempt."""
    keys = overrides | planned_workers(source, overrides, workers)
    ready = make_ready(Request(source, FIRST, keys, url))
    check_free(ready.run)
    check_room(ready.plan, ready.run, where="run_url")
    submit(ready, NewFolder(ready.run), report=_quietly, start=start)
    return ready.run


def go_on_with_run(
    run: RunDir, source: RecipeSource | None, overrides: JsonObject, *, workers: int, start: Start
) -> RunDir:
    """The next attempt of a run; `start` is not called if the run is complete.

    source: the recipe, whose keys that differ from the run's are changed; None: only those in `overrides` are.
    """
    changes = _changes(run, source, overrides)
    if not changes and state_of(run).state == "completed":
        return run
    ready = resume.make_ready(run, changes | _workers_of(_stored(run), workers))
    ready.submit(report=_quietly, start=start)
    return ready.target


def planned_workers(source: RecipeSource, overrides: JsonObject, workers: int) -> JsonObject:
    """The keys that make so many workers of a recipe's resources, all planned as if of this machine."""
    return _workers_of(_load(source, overrides), workers)


def _workers_of(loaded: LoadedRecipe, workers: int) -> JsonObject:
    asked = loaded.recipe.resources
    keys: JsonObject = {}
    if asked.nodes != 1:
        keys["resources.nodes"] = 1
    if asked.nproc_per_node != workers:
        keys["resources.nproc_per_node"] = workers
    if asked.gpus_per_node not in (None, 0, workers):  # without GPUs it stays an error
        keys["resources.gpus_per_node"] = workers
    return keys


def _changes(run: RunDir, source: RecipeSource | None, overrides: JsonObject) -> JsonObject:
    """The keys of a run that are given other values."""
    if source is None:
        return overrides
    asked = with_found_files(_load(source, overrides))
    before = _stored(run).recipe
    refuse_another_run(before, asked.recipe)
    changed = changes_between(before, asked.recipe)
    return {change.key: change.new for change in changed if not change.key.startswith(_OF_WORKERS)}


def _stored(run: RunDir) -> LoadedRecipe:
    """The recipe of a run as its newest attempt has it."""
    return check_recipe(stored_recipe(run), overrides_of(run), source=run.path(layout.RECIPE))


def _load(source: RecipeSource, overrides: JsonObject) -> LoadedRecipe:
    cluster = load_cluster(FIRST)
    reach_storage(cluster)
    return load_recipe(source, overrides, defaults=recipe_defaults(cluster))


def _quietly(line: str) -> None:
    """Prints nothing: nobody asked."""
