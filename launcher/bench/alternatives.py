"""What could be changed in a recipe to make it faster or smaller, one thing at a time. Pure: tries nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from launchyard.launcher.backends.hardware import HostFacts
from launchyard.launcher.bench.kinds import CHANGED_KINDS
from launchyard.launcher.plan.plan import Plan
from launchyard.storage.damage import JsonObject
from launchyard.training.batching import shares_of
from launchyard.training.recipe import Recipe

MOST_MICRO_BATCHES = 4  # in a step of a trial: enough that the update hardly counts


@dataclass(frozen=True)
class Alternative:
    """changes: keys of the recipe, as a user would type them. kind: of CHANGED_KINDS, or `own`."""

    kind: str
    title: str
    changes: JsonObject


@dataclass(frozen=True)
class Subject:
    """The recipe that is measured as it is, its plan, and the machine."""

    recipe: Recipe
    plan: Plan
    host: HostFacts

    @property
    def sharing(self) -> int:
        return shares_of(self.recipe.parallel)

    @property
    def takers(self) -> int:
        """Workers that take a share of a batch each."""
        return self.plan.world_size // self.sharing

    @property
    def cores(self) -> int:
        """Of the machine, as the plan shares them out."""
        return int(self.plan.environment["OMP_NUM_THREADS"]) * self.plan.nproc_per_node


def alternatives(subject: Subject, kinds: Sequence[str]) -> list[Alternative]:
    """Those of the kinds, in their order."""
    return [Alternative(kind, title, changes) for kind in kinds for title, changes in _MAKERS[kind](subject)]


def short_steps(subject: Subject, changes: JsonObject) -> JsonObject:
    """Those keys, with a batch of at most as many micro batches as a trial makes; a rate of tokens is the same."""
    plan = subject.plan
    takers = _workers(changes, plan) // subject.sharing
    own = plan.batch
    share = own.global_batch_size // max(1, takers)
    micro = int(str(changes.get("train.micro_batch_size", own.micro_batch_size)))
    read = own.micro_batch_size * min(own.grad_accum_steps, MOST_MICRO_BATCHES) * subject.takers
    n_micro = max(1, min(share // micro, round(read / (micro * max(1, takers)))))
    if takers < 1 or own.global_batch_size % takers or share % micro:
        return dict(changes)  # which the plan refuses, and says why
    return {"train.micro_batch_size": micro, **changes, "train.global_batch_size": micro * n_micro * takers}


def _workers(changes: JsonObject, plan: Plan) -> int:
    return int(str(changes.get("resources.nproc_per_node", plan.nproc_per_node))) * plan.nnodes


_Pairs = Iterator[tuple[str, JsonObject]]


def _micro_batches(subject: Subject) -> _Pairs:
    """The next sizes at twice and at half of its own, of those that divide the sequences of a worker."""
    own = subject.plan.batch.micro_batch_size
    share = own * subject.plan.batch.grad_accum_steps
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    larger = [size for size in sizes if size >= 2 * own][:1] or [size for size in sizes if size > own][-1:]
    smaller = [size for size in sizes if 2 * size <= own][-1:]
    for size in larger + smaller:
        yield f"micro-batch {size}", {"train.micro_batch_size": size}


def _checkpointing(subject: Subject) -> _Pairs:
    wanted = ("full", "op") if subject.recipe.parallel.activation_checkpointing == "none" else ("none",)
    for kind in wanted:
        changes: JsonObject = {"parallel.activation_checkpointing": kind}
        if kind == "none" and subject.recipe.parallel.activation_checkpointing_every > 1:
            changes["parallel.activation_checkpointing_every"] = 1
        yield f"checkpointing {kind}", changes


def _compiled(subject: Subject) -> _Pairs:
    compiled = subject.recipe.parallel.compile
    yield ("not compiled" if compiled else "compiled"), {"parallel.compile": not compiled}


def _splits(subject: Subject) -> _Pairs:
    """The cores of a CPU as twice and as half as many workers, each with the threads that are left for it."""
    plan = subject.plan
    if plan.device != "cpu":
        return
    for workers in (plan.nproc_per_node * 2, plan.nproc_per_node // 2):
        if not 1 <= workers <= subject.cores:
            continue
        changes: JsonObject = {"resources.nproc_per_node": workers}
        takers = workers * plan.nnodes // subject.sharing
        share = plan.batch.global_batch_size // max(1, takers)
        if share and share % plan.batch.micro_batch_size:
            changes["train.micro_batch_size"] = math.gcd(share, plan.batch.micro_batch_size)
        threads = subject.cores // workers
        yield f"{workers} worker{'s' * (workers > 1)} × {threads} thread{'s' * (threads > 1)}", changes


def _precisions(subject: Subject) -> _Pairs:
    """bf16 where the hardware has units for it, else fp32 in its place."""
    own = subject.recipe.train.precision
    gpus = subject.host.gpus
    fast = subject.host.cpu_bf16 if subject.plan.device == "cpu" else all(gpu.capability >= (8, 0) for gpu in gpus)
    wanted = "bf16" if own == "fp32" and fast else "fp32" if own == "bf16" and not fast else None
    if wanted is not None:
        yield wanted, {"train.precision": wanted}


_MAKERS: dict[str, Callable[[Subject], _Pairs]] = dict(
    zip(CHANGED_KINDS, (_micro_batches, _checkpointing, _splits, _precisions, _compiled), strict=True)
)
