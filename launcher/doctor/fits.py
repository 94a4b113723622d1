"""Does a recipe fit: its planned peak against the memory of each device, and what would make it fit. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from launchyard.launcher.backends.findings import Finding
from launchyard.launcher.doctor.devices import DeviceFacts
from launchyard.launcher.format import size
from launchyard.launcher.plan.plan import Plan
from launchyard.storage.damage import JsonObject
from launchyard.training.recipe import Recipe

TIGHT = 0.9  # of a device's memory: the plan counts tensors, and no runtime, scratch or fragmentation

Again = Callable[[JsonObject], Plan | None]  # the plan with other values of keys; None if they do not go together


@dataclass(frozen=True)
class FitChange:
    """Keys that would make it fit, and what would be planned with them."""

    overrides: JsonObject
    needed: int

    @property
    def text(self) -> str:
        keys = " ".join(
            f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in self.overrides.items()
        )
        return f"{keys} ({size(self.needed)})"


@dataclass(frozen=True)
class Fit:
    """Of one device: bytes that a worker on it needs at its peak, as planned, and those that it may have."""

    device: str
    needed: int
    available: int
    workers: int = 1  # that share the device
    free: int | None = None  # of that now, for each worker

    @property
    def fits(self) -> bool:
        return self.needed <= self.available

    @property
    def tight(self) -> bool:
        return self.needed > TIGHT * self.available

    @property
    def crowded(self) -> bool:
        """Others hold what it needs."""
        return self.free is not None and self.needed > self.free


def fits_of(plan: Plan, devices: Sequence[DeviceFacts]) -> list[Fit]:
    """Of each GPU that a worker gets, or of the CPU that all share."""
    needed = plan.memory["total"]
    if plan.device == "cpu":
        cpu = next(one for one in devices if one.kind == "cpu")
        each = plan.nproc_per_node
        free = None if cpu.free is None else cpu.free // each
        return [Fit(cpu.name, needed, cpu.memory // each, each, free)]
    gpus = [one for one in devices if one.kind in ("nvidia", "rocm")][: plan.nproc_per_node]
    return [Fit(f"{one.name} {number}", needed, one.memory, free=one.free) for number, one in enumerate(gpus)]


def changes_of(plan: Plan, recipe: Recipe, again: Again, available: int) -> list[FitChange]:
    """What would fit with some room: each change that does alone, else the first of several together."""
    limit = TIGHT * available
    alone = [change for keys in _alone(plan, recipe) if (change := _tried(keys, again, limit))]
    alone = _largest_batch(alone)
    if alone:
        return alone
    return next(([change] for keys in _together(plan, recipe) if (change := _tried(keys, again, limit))), [])


def _tried(keys: JsonObject, again: Again, limit: float) -> FitChange | None:
    plan = again(keys)
    if plan is None or plan.memory["total"] > limit:
        return None
    return FitChange(keys, plan.memory["total"])


def _alone(plan: Plan, recipe: Recipe) -> Iterator[JsonObject]:
    micro = plan.batch.micro_batch_size
    yield from ({"train.micro_batch_size": size} for size in range(micro - 1, 0, -1) if micro % size == 0)
    if recipe.parallel.activation_checkpointing != "full":
        yield {"parallel.activation_checkpointing": "full"}
    if recipe.parallel.shard_level != 3 and plan.world_size > 1:
        yield {"parallel.shard_level": 3}


def _together(plan: Plan, recipe: Recipe) -> Iterator[JsonObject]:
    """From what changes no number of a run to what does."""
    keys: JsonObject = {"train.micro_batch_size": 1, "parallel.activation_checkpointing": "full"}
    yield dict(keys)
    if plan.world_size > 1 and recipe.parallel.shard_level != 3:
        keys["parallel.shard_level"] = 3
        yield dict(keys)
    if plan.device == "cuda":
        keys["parallel.cpu_offload"] = True
        yield dict(keys)
    keys.pop("parallel.cpu_offload", None)
    if recipe.model.init_from is not None and recipe.adapter.kind == "none":
        yield {**keys, "adapter.kind": "lora"}
        yield {**keys, "adapter.kind": "qlora"}


def _largest_batch(changes: Sequence[FitChange]) -> list[FitChange]:
    """Of several micro-batches only the first, which is the largest."""
    batches = [one for one in changes if "train.micro_batch_size" in one.overrides]
    return [*batches[:1], *(one for one in changes if one not in batches)]


def fit_findings(fits: Sequence[Fit], changes: Sequence[FitChange]) -> Iterator[Finding]:
    fix = "; or ".join(change.text for change in changes)
    for fit in fits:
        among = f" for each of {fit.workers} workers" if fit.workers > 1 else ""
        found = f"{fit.device}: {size(fit.needed)} planned of {size(fit.available)}{among}"
        if not fit.fits:
            cure = (
                fix or "nothing that is known here makes it fit: a smaller model, a shorter data.seq_len, more devices"
            )
            yield Finding(what="fits", level="error", found=f"{found}: it does not fit", fix=cure)
        elif fit.tight:
            yield Finding(
                what="fits", level="warning", found=f"{found}: it may not fit", fix=fix or "try `launch tune`"
            )
        elif fit.crowded:
            why = f"it fits once others give back what they hold; {size(fit.free or 0)} are free"
            yield Finding(what="fits", level="warning", found=f"{found}: {why}", fix="wait, or end what holds it")
        else:
            yield Finding(what="fits", level="ok", found=found)
