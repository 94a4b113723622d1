"""A sweep planned and checked as a whole before anything of it exists. Starts nothing and writes nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launchyard.errors import RecipeErrors, UserError
from launchyard.launcher.backends.base import load_backend
from launchyard.launcher.backends.cluster import Cluster, load_cluster, reach_storage, recipe_defaults
from launchyard.launcher.recipe.load import LoadedRecipe, UncheckedRecipe, paths_from, read_recipe
from launchyard.launcher.submit.code import CodeSnapshot, take_snapshot
from launchyard.launcher.submit.launch import Ready, new_place, ready_at
from launchyard.launcher.sweep.record import Sweep, SweepPoint, check_sweep_place, new_sweep_id
from launchyard.storage.damage import JsonObject
from launchyard.training.recipe import apply_overrides

# Keys whose value may be the name of something that is another thing tomorrow, such as the newest run.
_FOUND = ("model.init_from", "tokenizer")
_NOT_VARIED = {
    "name": "a sweep numbers its runs; name them all with --name NAME",
    "extends": "not possible; name the recipe itself instead",
}


@dataclass(frozen=True)
class SweepRequest:
    """The arguments of the command line. `fixed`: keys of all points; `at_once`: None for as many as there is room."""

    recipe: str
    cluster: str
    fixed: JsonObject
    points: Sequence[JsonObject]
    design: JsonObject
    at_once: int | None = None
    url: str | None = None


@dataclass(frozen=True)
class ReadySweep:
    """A sweep that could start now, and the launch of each of its points. Making it created nothing."""

    sweep: Sweep
    cluster: Cluster
    ready: list[Ready]

    @property
    def notes(self) -> list[str]:
        """What the plans of its points point out, each once."""
        return list(dict.fromkeys(note for ready in self.ready for note in ready.plan.notes))


def plan_sweep(request: SweepRequest, *, dry_run: bool = False) -> ReadySweep:
    """Plans every point; RecipeErrors with all that is wrong with any of them. Its points differ from each other."""
    cluster = load_cluster(request.cluster)
    reach_storage(cluster)
    fixed = paths_from(os.getcwd(), request.fixed)
    unchecked = read_recipe(request.recipe, defaults=recipe_defaults(cluster)).changed(fixed)
    name = str(unchecked.document.value.get("name", "sweep"))
    sweep_id = new_sweep_id(name)
    folder = new_place(cluster, request.url, sweep_id)
    check_sweep_place(folder.url)
    points = _numbered(request.points, sweep_id, name)
    sweep = Sweep(
        sweep_id=sweep_id,
        url=folder.url,
        created=time.time(),
        cluster=os.path.abspath(request.cluster) if os.path.isfile(request.cluster) else request.cluster,
        at_once=_at_once(request.at_once, cluster),
        source=unchecked.document.label,
        base=unchecked.base,
        design=request.design,
        recipe=unchecked.document.value,
        points=points,
    )
    ready = _plan_all(sweep, unchecked, cluster, dry_run=dry_run)
    return ReadySweep(_as_found(sweep, ready), cluster, ready)


def ready_point(
    sweep: Sweep, point: SweepPoint, cluster: Cluster, *, code: CodeSnapshot, recipe: UncheckedRecipe, dry_run: bool
) -> Ready:
    """The launch of one point. `recipe`: what all points have in common, with the places of its keys if known."""
    loaded = recipe.check({**point.overrides, "name": point.name})
    run = sweep.run_of(point)
    return ready_at(run, loaded, cluster, run_id=point.run_id, code=code, dry_run=dry_run)


def _at_once(asked: int | None, cluster: Cluster) -> int | None:
    return asked if load_backend(cluster.scheduler).TRAITS.scheduled else asked or 1


def _numbered(points: Sequence[JsonObject], sweep_id: str, name: str) -> list[SweepPoint]:
    """The points in their order; RecipeErrors for keys that a sweep cannot vary, and for two that are the same."""
    problems = [
        f"{key} on the command line: {why}" for key, why in _NOT_VARIED.items() if any(key in point for point in points)
    ]
    seen: dict[str, int] = {}
    for number, point in enumerate(points, 1):
        first = seen.setdefault(json.dumps(point, sort_keys=True), number)
        if first != number:
            problems.append(f"points {first} and {number} are the same: {point_text(point)}")
    if problems:
        raise RecipeErrors(problems)
    width = len(str(len(points)))
    labels = [f"{number:0{width}d}" for number in range(1, len(points) + 1)]
    return [
        SweepPoint(
            number=number,
            name=f"{name}-{label}",
            run_id=f"{sweep_id}-{label}",
            overrides=paths_from(os.getcwd(), point),
        )
        for number, (label, point) in enumerate(zip(labels, points, strict=True), 1)
    ]


def point_text(overrides: Mapping[str, object]) -> str:
    """The keys of a point as they would be typed: `optimizer.lr=0.0001 model.dim=64`."""
    return " ".join(f"{key}={value_text(value)}" for key, value in overrides.items()) or "the recipe as it is"


def value_text(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _plan_all(sweep: Sweep, unchecked: UncheckedRecipe, cluster: Cluster, *, dry_run: bool) -> list[Ready]:
    """RecipeErrors with each problem of any point once, and the points that have it."""
    code = take_snapshot(Path.cwd())
    ready = []
    problems: dict[str, list[SweepPoint]] = {}
    hint = None
    for point in sweep.points:
        try:
            ready.append(ready_point(sweep, point, cluster, code=code, recipe=unchecked, dry_run=dry_run))
        except UserError as error:
            hint = hint or error.hint
            for problem in error.problems if isinstance(error, RecipeErrors) else [str(error)]:
                problems.setdefault(problem, []).append(point)
    if problems:
        raise RecipeErrors([f"{_who(points, sweep)}: {what}" for what, points in problems.items()], hint=hint)
    return ready


def _who(points: list[SweepPoint], sweep: Sweep) -> str:
    if len(points) == len(sweep.points):
        return "every point"
    if len(points) == 1:
        return f"point {points[0].number}"
    return f"points {', '.join(str(point.number) for point in points[:-1])} and {points[-1].number}"


def _as_found(sweep: Sweep, ready: Sequence[Ready]) -> Sweep:
    """The same with names of runs and models as what they stand for now: whatever is submitted later means the same."""
    recipe = sweep.recipe
    points = []
    for point, one in zip(sweep.points, ready, strict=True):
        found = {key: value for key in _FOUND if (value := _value(one.loaded, key)) is not None}
        points.append(
            point.model_copy(
                update={"overrides": {key: found.get(key, value) for key, value in point.overrides.items()}}
            )
        )
        recipe = apply_overrides(recipe, {key: found[key] for key in found if key not in point.overrides})
    return sweep.model_copy(update={"recipe": recipe, "points": points})


def _value(loaded: LoadedRecipe, key: str) -> object:
    section, _, last = key.rpartition(".")
    found: object = loaded.raw.get(section, {}).get(last) if section else loaded.raw.get(last)
    return found
