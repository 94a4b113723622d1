"""Tokens per second of a plan, as far as they are known, and how. Pure: measurements are passed in."""

from __future__ import annotations

from launchyard.launcher.backends.base import load_backend
from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.backends.hardware import HostFacts
from launchyard.launcher.backends.request import Ask
from launchyard.launcher.plan.plan import PlannedBatch, PlannedSpeed
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.cost import flops_per_token
from launchyard.model.devices import REACHED, peak_flops
from launchyard.model.memory import is_narrow
from launchyard.model.speed import Calibration, step_seconds
from launchyard.training.recipe import Recipe

CALIBRATED = "fp32"  # train.precision
TEXT = "tokens"  # data.kind whose every token has a label


def planned_speed(
    recipe: Recipe,
    model: ModelConfig,
    adapter: Adapter | None,
    batch: PlannedBatch,
    *,
    cluster: Cluster,
    host: HostFacts,
    ask: Ask,
) -> PlannedSpeed | None:
    """None where nothing that is like it was measured, and for the nodes of a scheduler, which nobody has looked at."""
    workers = ask.shape.world_size
    if load_backend(cluster.scheduler).TRAITS.scheduled:
        return None
    if ask.shape.device == "cuda":
        return _by_data_sheet(recipe, model, adapter, host, workers)
    calibration = calibration_of(host, int(ask.environment["OMP_NUM_THREADS"]))
    if calibration is None or workers > 1 or adapter is not None or not _is_plain(recipe):
        return None
    seconds = step_seconds(
        model,
        calibration,
        micro_batch_size=batch.micro_batch_size,
        grad_accum_steps=batch.grad_accum_steps,
        seq_len=batch.seq_len,
        checkpointing=recipe.parallel.activation_checkpointing,
        every=recipe.parallel.activation_checkpointing_every,
    )
    if seconds is None:
        return None
    return PlannedSpeed(
        tokens_per_second=round(batch.tokens_per_step / seconds, 1),
        how=f"by a calibration of this machine on {calibration.date}",
    )


def _by_data_sheet(
    recipe: Recipe, model: ModelConfig, adapter: Adapter | None, host: HostFacts, workers: int
) -> PlannedSpeed | None:
    name = host.gpus[0].name if host.gpus else ""
    peak = recipe.metrics.peak_flops or peak_flops(name)
    if peak is None or not is_narrow(recipe.train.precision):
        return None
    each = REACHED * peak / flops_per_token(model, recipe.data.seq_len, adapter)
    how = f"a guess by the data sheet: {REACHED:.0%} of {name}'s peak"
    return PlannedSpeed(tokens_per_second=round(each * workers, 1), how=how)


def calibration_of(host: HostFacts, threads: int) -> Calibration | None:
    """Of one worker with so many threads."""
    return next((one for one in host.calibrations if one.threads == threads), None)


def _is_plain(recipe: Recipe) -> bool:
    """What was measured is AdamW's update and the loss of the next token, computed op by op in fp32."""
    train = recipe.train
    plain = (
        train.precision == CALIBRATED
        and recipe.data.kind == TEXT
        and recipe.optimizer.name == "adamw"
        and recipe.code is None
    )
    return plain and not (recipe.parallel.compile or train.dropout or train.ema_decay)
