"""Warnings about a plan that is valid but may surprise. Pure: reads no file and asks no machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from launchyard.launcher.backends.base import Traits, load_backend
from launchyard.launcher.format import size
from launchyard.storage.hub_cache import origin_in_cache
from launchyard.training.batching import samples_of
from launchyard.training.checkpoint.slots import NODE_SHARE
from launchyard.training.recipe import Recipe
from launchyard.training.spec import DataSpec, source_names

if TYPE_CHECKING:
    from launchyard.launcher.plan.plan import Plan


MANY_EPOCHS = 4  # up to here repeated tokens are nearly as good as new ones (Muennighoff et al. 2023)


def surprises(plan: Plan, recipe: Recipe, *, free_bytes: int | None = None) -> Iterator[str]:
    """free_bytes: that a local run directory may fill."""
    needed = plan.memory["total"]
    available = plan.memory_available
    if available is not None and needed > available:
        yield (
            f"about {needed / 1e9:.1f} GB a worker, but there are {available / 1e9:.1f}: it may not fit; try "
            "train.micro_batch_size=1 or parallel.activation_checkpointing=full"
        )
    yield from _of_snapshots(plan, recipe)
    if recipe.validation.tasks:
        yield (
            f"validation.tasks: rank 0 loads the whole model once more to ask it, {size(4 * plan.n_params)} in fp32, "
            "and the other workers wait; each point is saved first"
        )
    trained_on = {source.folder for source in plan.data.train}
    for set_name, sources in plan.data.sets.items():
        if any(source.folder in trained_on for source in sources):
            yield f"validation.sets.{set_name} is trained on too, so its loss says nothing of text that is new"
    if load_backend(plan.scheduler).TRAITS.scheduled:
        yield from _of_a_cache_here(recipe)
    if recipe.notify is not None and recipe.notify.webhook_env:
        yield from _of_a_webhook(recipe.notify.webhook_env, load_backend(plan.scheduler).TRAITS)
    warmup = recipe.schedule.warmup_steps
    if warmup >= 1 and warmup > plan.max_steps:
        yield f"warmup_steps {warmup} is longer than the run of {plan.max_steps} steps: lr never reaches its peak"
    if free_bytes is not None:
        yield from _of_a_full_disk(plan, recipe, free_bytes)
    if plan.epochs:
        yield from _of_small_data(plan.data, recipe)
    if len(plan.data.train) > 1:
        yield from _of_a_mixture(plan, recipe)


def _of_a_webhook(name: str, traits: Traits) -> Iterator[str]:
    if not traits.takes_environment:
        yield (
            f"notify.webhook_env: {name} must be set on the nodes, by whoever starts {traits.title} there; it is not "
            "taken along from this shell, nor looked for in it"
        )


def _of_a_cache_here(recipe: Recipe) -> Iterator[str]:
    """Weights are read by the workers; a tokenizer is copied into the run before."""
    source = recipe.model.init_from
    origin = source and origin_in_cache(source)
    if source and origin and "://" not in source:
        yield (
            f"model.init_from: {origin.repo} lies in the hub's cache at {source}: every node must see that path. If "
            "the cache is on a disk of this machine only, name a shared folder in HF_HOME, or get the model with "
            f"`launch download {origin.repo} --revision {origin.revision} --out SHARED_FOLDER`"
        )


def _of_snapshots(plan: Plan, recipe: Recipe) -> Iterator[str]:
    """Where the memory of this machine is known; elsewhere the workers say so."""
    available = plan.memory_available
    if recipe.checkpoint.snapshot_steps is None or available is None or plan.device != "cpu":
        return
    slots = 2 * plan.state_bytes
    if not sys.platform.startswith("linux"):
        yield "checkpoint.snapshot_steps: none are made here, for that takes Linux; a killed worker costs more steps"
    elif slots * NODE_SHARE > available and recipe.checkpoint.snapshot_steps == "auto":
        yield (
            f"checkpoint.snapshot_steps=auto: none are made, for two copies of the state are {size(slots)} a worker, "
            "more than a quarter of this machine's memory; a number of steps makes them all the same"
        )


def checkpoints_at_once(recipe: Recipe, max_steps: int) -> int:
    """The most checkpoints that lie in a run at a time, the one that is being written included."""
    saves = recipe.checkpoint
    best = saves.keep_best or 0
    if not saves.every_steps:
        passing = saves.every_minutes or saves.keep_best
        return (3 if passing else 1) + best  # the newest, the one before it, and the next
    permanent = max_steps // saves.every_steps
    return min(permanent, saves.keep or permanent) + 2 + best


def _of_a_full_disk(plan: Plan, recipe: Recipe, free_bytes: int) -> Iterator[str]:
    most = checkpoints_at_once(recipe, plan.max_steps)
    needed = most * plan.checkpoint_bytes
    if needed > free_bytes:
        keep = free_bytes // plan.checkpoint_bytes - 2
        fix = f"checkpoint.keep={keep} would fit" if recipe.checkpoint.every_steps and keep > 0 else "make room there"
        yield (
            f"up to {most} checkpoints of {size(plan.checkpoint_bytes)} lie in the run at a time, {size(needed)}, but "
            f"there is room for {size(free_bytes)} of them; {fix}"
        )


def _of_small_data(spec: DataSpec, recipe: Recipe) -> Iterator[str]:
    for name, source, share in zip(source_names(spec, recipe), spec.train, spec.shares, strict=True):
        count = samples_of(source, recipe.data.seq_len)
        if count < share * recipe.train.global_batch_size:
            alone = len(spec.train) == 1
            what = "the data" if alone else name
            of = "one global batch" if alone else "its share of a global batch"
            yield f"{what} holds {count} sequences, fewer than {of}: it repeats within a step"


def _of_a_mixture(plan: Plan, recipe: Recipe) -> Iterator[str]:
    spec = plan.data
    names = source_names(plan.data, recipe)
    for number, stage in enumerate(recipe.data.mixture_schedule or ()):
        if stage.from_step >= plan.max_steps:
            yield f"data.mixture_schedule.{number} begins at step {stage.from_step}; the run ends at {plan.max_steps}"
    for name, passes in zip(names, plan.epochs, strict=True):
        if passes > MANY_EPOCHS:
            yield f"{name} is read {passes:.3g} times over; more than {MANY_EPOCHS} seldom help"
    validated = {source.folder for source in spec.validation}
    seen = [f"{os.path.dirname(source.folder)}/validation" in validated for source in spec.train]
    if any(seen) and not all(seen):
        unseen = [name for name, known in zip(names, seen, strict=True) if not known]
        yield f"validation sees nothing of {', '.join(unseen)}"
    if len(spec.validation) > 1 and recipe.validation.max_batches is not None:
        yield "validation.max_batches measures the first batches only: those of the first sources"
