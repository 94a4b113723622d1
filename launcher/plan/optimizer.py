"""What an optimizer asks of the rest of a recipe, and the bytes of its state in a plan. Pure: knows no machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from launchyard.launcher.plan.regularised import averaged_checkpoint
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.cost import n_params_trained
from launchyard.model.layout import parameters
from launchyard.model.memory import BF16_BYTES, checkpoint_bytes
from launchyard.model.precision import NUMBER_BYTES, PRECISIONS
from launchyard.training.optim.state_size import StateSize, state_size, with_state
from launchyard.training.recipe import Recipe

WITHIN_WEIGHTS = "adamw, adafactor, sgd, lion or adamw-8bit"  # whose weights are the parameters, each on its own
COLLECTIVE = ("muon", "adafactor")  # workers that share a matrix tell each other of it, on the GPUs
NOT_BESIDE = ("muon", "adamw-schedule-free")


def optimizer_problems(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it)"""
    name = recipe.optimizer.name
    schedule = recipe.schedule
    if schedule.min_lr > recipe.optimizer.lr:
        yield "schedule.min_lr", f"{schedule.min_lr} is above optimizer.lr, {recipe.optimizer.lr}"
    if name == "adamw-schedule-free" and schedule.name != "constant":
        why = "takes an average in the place of a schedule that falls"
        yield "schedule.name", f"{schedule.name}, but adamw-schedule-free {why}; use constant, after a warmup"
    if name in NOT_BESIDE and recipe.train.precision == "bf16-true":
        what = f"{name} does not go with train.precision=bf16-true"
        yield "optimizer.name", f"{what}; use {WITHIN_WEIGHTS}, or train.precision=bf16"
    if name in NOT_BESIDE and recipe.train.ema_decay is not None:
        what = f"{name} does not go with train.ema_decay"
        yield "optimizer.name", f"{what}; leave that out, or use {WITHIN_WEIGHTS}"
    if name == "adamw-8bit" and recipe.train.precision == "fp64":
        yield "optimizer.name", "adamw-8bit keeps less than fp32, and train.precision is fp64; use adamw"
    if name in COLLECTIVE and recipe.parallel.cpu_offload:
        what = f"{name} has workers tell each other of matrices on their GPUs, and parallel.cpu_offload keeps them off"
        yield "optimizer.name", f"{what}; leave that out, or use adamw, sgd, lion or adamw-8bit"
    yield from _of_ramps(recipe)


def _of_ramps(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.data.seq_len_ramp and recipe.parallel.cp > 1:
        yield "data.seq_len_ramp", "short sequences are not shared by workers; use parallel.cp=1, or leave the ramp out"


def planned_checkpoint(recipe: Recipe, model: ModelConfig, adapter: Adapter | None) -> int:
    """Bytes of a checkpoint: weights, the optimizer's state, and what precision and averages keep beside them."""
    found = checkpoint_bytes(
        model,
        adapter,
        precision=recipe.train.precision,
        compensated=recipe.train.bf16_rounding == "compensated",
        state=planned_state(recipe, model, adapter, shards=1).saved,
    )
    return averaged_checkpoint(found, recipe, model, adapter)


def planned_state(recipe: Recipe, model: ModelConfig, adapter: Adapter | None, *, shards: int) -> StateSize:
    kept = NUMBER_BYTES[PRECISIONS[recipe.train.precision].kept]
    return state_size(recipe.optimizer, parameters(model, adapter), shards, number_bytes=kept)


def with_optimizer(
    found: Mapping[str, int], recipe: Recipe, share: ModelConfig, adapter: Adapter | None, *, shards: int
) -> dict[str, int]:
    """A worker's memory of model/memory.py with the state of this optimizer in the place of AdamW's. share: of the
    model, as the worker has it before FSDP cuts it."""
    whole = {key: int(value) for key, value in found.items()}
    if recipe.parallel.cpu_offload:
        return whole
    rests = BF16_BYTES * -(-n_params_trained(share, adapter) // shards)
    state = planned_state(recipe, share, adapter, shards=shards)
    return with_state(whole, state, beside=rests if recipe.train.bf16_rounding == "compensated" else 0)


def with_staging(
    found: Mapping[str, int], recipe: Recipe, model: ModelConfig, adapter: Adapter | None, *, shards: int
) -> dict[str, int]:
    """Bytes of a worker on a CPU with its copy of what a checkpoint holds: room that it takes as it starts, so that it
    can train on beside a save. Workers on GPUs have theirs in the memory of the host."""
    if not recipe.checkpoint.async_save:
        return dict(found)
    staging = -(-planned_checkpoint(recipe, model, adapter) // shards)
    return {**found, "staging": staging, "total": found["total"] + staging}
