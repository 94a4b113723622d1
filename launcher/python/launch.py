"""Launching from Python: `from launchyard import launch`, the same as the command."""

from __future__ import annotations

import os
from collections.abc import Mapping

from launchyard.errors import EXIT_FAILED, LaunchError
from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.python.errors import python_errors
from launchyard.launcher.python.handle import Run
from launchyard.launcher.recipe.load import plain_mapping
from launchyard.launcher.submit.launch import NewFolder, Request, check_free, make_ready, submit
from launchyard.launcher.submit.room import check_room

RecipeLike = str | os.PathLike[str] | Mapping[str, object]


def launch_run(
    recipe: RecipeLike = "quickstart",
    *,
    overrides: Mapping[str, object] | None = None,
    cluster: str | os.PathLike[str] = FIRST,
    nodes: int | None = None,
    gpus_per_node: int | None = None,
    name: str | None = None,
    run_url: str | os.PathLike[str] | None = None,
    follow: bool = False,
) -> Run:
    """Launches a recipe as `launch RECIPE` does, and returns at once: the run has processes of its own, or a job.

    recipe: a bundled name, a path, a URL, or the recipe itself as a mapping. overrides: keys on top of it, dotted, such
    as {"train.max_steps": 500}. cluster: name or file of the place. run_url: its run directory, which must be new.
    follow: wait for the end and print what happens, as the command does; Ctrl-C saves and stops then.
    RecipeErrors names all that is wrong with the recipe, UserError any other mistake; nothing was created then.
    LaunchError if it could not be started, or was followed and failed.
    """
    flags = {"resources.nodes": nodes, "resources.gpus_per_node": gpus_per_node, "name": name}
    with python_errors():
        given = plain_mapping(overrides or {}, "overrides") | {
            k: value for k, value in flags.items() if value is not None
        }
        place = None if run_url is None else os.fspath(run_url)
        ready = make_ready(Request(named(recipe), os.fspath(cluster), given, place))
        check_free(ready.run)
        check_room(ready.plan, ready.run, where="run_url")
        ready, job = submit(ready, NewFolder(ready.run), report=print if follow else _nothing)
    run = Run(ready.plan.run_id, ready.run.url, ready.run)
    if follow:
        from launchyard.launcher.watch.follow import follow as watch

        if watch(ready.run, job=job) == EXIT_FAILED:
            raise LaunchError(f"{run.id} has failed", hint=f"launch why {run.id}")
    return run


def named(recipe: RecipeLike) -> str | Mapping[str, object]:
    return os.fspath(recipe) if isinstance(recipe, str | os.PathLike) else recipe


def _nothing(line: str) -> None:
    """Prints nothing: nobody asked."""
