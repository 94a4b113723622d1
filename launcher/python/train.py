"""Training in this very process: `from launchyard import train`, for a notebook, a debugger or a unit test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from launchyard.launcher.backends.cluster import load_cluster, reach_storage, recipe_defaults
from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.python.errors import python_errors
from launchyard.launcher.python.handle import Run
from launchyard.launcher.python.inside import Inside, alone_here
from launchyard.launcher.python.launch import RecipeLike, named
from launchyard.launcher.recipe.load import LoadedRecipe, check_recipe, load_recipe, plain_mapping
from launchyard.launcher.runs.find import reach_run
from launchyard.launcher.runs.state import state_of
from launchyard.launcher.submit import resume
from launchyard.launcher.submit.changes import changes_between
from launchyard.launcher.submit.launch import (
    NewFolder,
    Request,
    check_free,
    make_ready,
    submit,
    with_found_files,
)
from launchyard.launcher.submit.room import check_room
from launchyard.run import layout
from launchyard.run.records import Outcome
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.storage.files import typed_path
from launchyard.training.recipe import overrides_of, stored_recipe

if TYPE_CHECKING:
    from launchyard.model.loaded import LoadedModel
    from launchyard.training.telemetry.instruments import OnStep

DEFAULT_RECIPE = "quickstart"


@dataclass(frozen=True)
class Training:
    """How a call of `train` ended. `outcome`: completed, or stopped, which another call goes on from."""

    run: Run
    outcome: Outcome
    step: int

    @cached_property
    def losses(self) -> list[float]:
        """Nats per token (of pairs: nats per pair), one a step, from the first step of the run on."""
        return [float(row["loss"]) for row in self.run.metrics()]

    @cached_property
    def model(self) -> LoadedModel:
        """The model as it was saved last, ready to write text."""
        return self.run.model()


def train_here(
    recipe: RecipeLike | None = None,
    *,
    overrides: Mapping[str, object] | None = None,
    run_url: str | os.PathLike[str] | None = None,
    on_step: OnStep | None = None,
) -> Training:
    """Trains in this process, as its one worker on one GPU or the CPU, and returns when the run has ended.

    The run is one as any other: its directory has rows and exact checkpoints, `launch status` shows it, `launch stop`
    stops it, `launch resume` goes on with it on any number of workers. Its numbers are those of `launch`, to the bit.

    recipe: as for `launch`; of its resources one worker is taken. overrides: keys on top of it, dotted. run_url: its
    run directory. If there is a run in it already, that run goes on from its newest checkpoint, with the keys that
    differ changed as `launch resume` changes them; without a recipe with none. A run that is complete is not trained.
    on_step: called after each step with its row (step, loss, grad_norm, lr, tokens_seen …).
    Ctrl-C saves after the present step and returns, `outcome` is stopped then; a second one raises KeyboardInterrupt.
    RecipeErrors and UserError for mistakes; any error of training itself once it is on record.
    """
    with alone_here():
        inside = Inside(on_step)
        with python_errors():
            given = plain_mapping(overrides or {}, "overrides")
            place = _place(run_url)
            if place is not None and place.exists(layout.PLAN):
                run = _go_on(place, recipe, given, inside)
            else:
                run = _begin(place, recipe, given, inside)
        if inside.claimed:
            inside.train()
    state = state_of(run)
    outcome: Outcome = "completed" if state.state == "completed" else "stopped"
    return Training(Run(state.run_id, run.url, run), outcome, state.step or 0)


def _place(url: str | os.PathLike[str] | None) -> RunDir | None:
    return None if url is None else reach_run(RunDir(typed_path(os.fspath(url))))


def _begin(run: RunDir | None, recipe: RecipeLike | None, given: JsonObject, inside: Inside) -> RunDir:
    """A new run, and its first attempt."""
    source = named(recipe or DEFAULT_RECIPE)
    keys = given | one_worker(source, given)
    ready = make_ready(Request(source, FIRST, keys, None if run is None else run.url))
    check_free(ready.run)
    check_room(ready.plan, ready.run, where="run_url")
    submit(ready, NewFolder(ready.run), report=_quietly, start=inside.start)
    return ready.run


def _go_on(run: RunDir, recipe: RecipeLike | None, given: JsonObject, inside: Inside) -> RunDir:
    """The next attempt of a run; none if it is complete."""
    changes = _changes(run, recipe, given)
    if not _trains(changes) and state_of(run).state == "completed":
        return run
    ready = resume.make_ready(run, changes)
    ready.submit(report=_quietly, start=inside.start)
    return ready.target


def _changes(run: RunDir, recipe: RecipeLike | None, given: JsonObject) -> JsonObject:
    """The keys of a run that this call gives other values, and those that make it one worker."""
    before = check_recipe(stored_recipe(run), overrides_of(run), source=run.path(layout.RECIPE))
    if recipe is None:
        return given | _one_worker(before)
    asked = with_found_files(_load(named(recipe), given))
    found: JsonObject = {change.key: change.new for change in changes_between(before.recipe, asked.recipe)}
    mine = {key: value for key, value in found.items() if not key.startswith("resources.")}
    return mine | _one_worker(before)


def one_worker(source: str | Mapping[str, object], overrides: JsonObject) -> JsonObject:
    """The keys that leave one worker of a recipe's resources."""
    return _one_worker(_load(source, overrides))


def _trains(changes: JsonObject) -> bool:
    """Is there a change beside those of the workers?"""
    return any(not key.startswith("resources.") for key in changes)


def _load(source: str | Mapping[str, object], overrides: JsonObject) -> LoadedRecipe:
    cluster = load_cluster(FIRST)
    reach_storage(cluster)
    return load_recipe(source, overrides, defaults=recipe_defaults(cluster))


def _one_worker(loaded: LoadedRecipe) -> JsonObject:
    """The keys that leave one worker of a recipe's resources, as far as they have to be changed."""
    asked = loaded.recipe.resources
    ones: JsonObject = {}
    if asked.nodes != 1:
        ones["resources.nodes"] = 1
    if asked.nproc_per_node != 1:
        ones["resources.nproc_per_node"] = 1
    if asked.gpus_per_node is not None and asked.gpus_per_node > 1:
        ones["resources.gpus_per_node"] = 1
    return ones


def _quietly(line: str) -> None:
    """Prints nothing: nobody asked."""
