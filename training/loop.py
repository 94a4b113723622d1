"""The one loop. Everything that is not a step happens at the boundary between two steps, agreed by all ranks.

Resuming is the same loop from a later step: the data, the learning rate and the schedule of saves are functions of
the step number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from launchyard.training.batching import Context
from launchyard.training.build import ramp_balance
from launchyard.training.checkpoint.checkpointer import Checkpointer
from launchyard.training.checkpoint.commit import CheckpointKind
from launchyard.training.checkpoint.save_timer import SaveTimer
from launchyard.training.checkpoint.state import TrainState, shards
from launchyard.training.data.micro_batch import micro_batches_of
from launchyard.training.data.reader import Batch, Prefetcher, Reader
from launchyard.training.distributed import sum_over_ranks
from launchyard.training.objectives.objective import Objective
from launchyard.training.optim.averaged import averaged_weights
from launchyard.training.optim.base import Optimizer
from launchyard.training.optim.schedule import planned_lr
from launchyard.training.parallel import mesh_shape
from launchyard.training.precision.loss_scale import SMALLEST_SCALE, ScaledObjective, next_scale
from launchyard.training.spec import source_names
from launchyard.training.stability.guard import Guard, RewindError
from launchyard.training.stability.rewind import go_back
from launchyard.training.step import StepTimes, UpdateRules, overflowed, train_step
from launchyard.training.stop import REASONS, StopFlag, agreed_reason
from launchyard.training.telemetry.telemetry import Telemetry, TokenCounts
from launchyard.training.validation.asking import Asking, Point, ask_together
from launchyard.training.validation.held_out import validation_means
from launchyard.training.verdict import ranked

STOP_CHECK_SECONDS = 0.5  # while waiting for data


class NonFiniteError(Exception):
    """The loss or its gradient is no number any more."""


@dataclass(frozen=True)
class Learner:
    """The state that changes with every step."""

    model: nn.Module
    optimizer: Optimizer
    state: TrainState


@dataclass(frozen=True)
class Data:
    reader: Reader
    held_out: Reader | None  # for validation


@dataclass(frozen=True)
class Parts:
    """All that `train` needs."""

    context: Context
    learner: Learner
    data: Data
    checkpointer: Checkpointer
    telemetry: Telemetry
    flag: StopFlag
    objective: Objective
    points: Sequence[Point] = ()  # what checkpoints are asked
    guard: Guard | None = None


@dataclass(frozen=True)
class Agreement:
    """Facts that all ranks know before a step."""

    n_parts: int
    n_valid: int
    n_tokens: int
    data_hash: int
    save: bool
    reason: str | None


@dataclass
class Pending:
    """A step whose numbers may still be on their way from the device."""

    step: int
    means: torch.Tensor  # the loss, and the objective's figures
    grad_norm: torch.Tensor
    lr: float
    waited: float
    agreement: Agreement
    tokens_seen: int
    loss_scale: float | None  # after this step


def train(parts: Parts) -> str | None:
    """Train to the last step; the agreed reason if the run was asked to stop before (the state is saved then)."""
    learner = parts.learner
    while True:
        try:
            return train_on(parts)
        except RewindError as wanted:  # of all ranks, at the same step
            told = {"model": learner.model, "optimizer": learner.optimizer, "state": learner.state}
            go_back(wanted, parts.context, parts.checkpointer, parts.telemetry, **told)
            for point in parts.points:
                point.forget_after(wanted.steps[0] - 1)


def train_on(parts: Parts) -> str | None:
    """From the step that the state is at."""
    context = parts.context
    learner = parts.learner
    telemetry = parts.telemetry
    state = learner.state
    clock = telemetry.clock
    recipe = context.recipe
    timer = SaveTimer(recipe.checkpoint.every_minutes if context.world.is_main else None)
    pending: Pending | None = None
    # Read the numbers of a step while the next one runs, unless they were read for its update.
    lag = context.device.type == "cuda" and parts.guard is None
    telemetry.training()
    parts.checkpointer.allocate_staging(shards(learner.model, learner.optimizer))
    feed = prefetch(context, parts.data, state.step)
    telemetry.meter.reset()
    try:
        for step in range(state.step, final_step(parts)):
            clock.enter("data_wait")
            began = time.perf_counter()
            batch = await_batch(feed, parts.flag, clock.beat)
            waited = time.perf_counter() - began
            agreement = agree(parts, step, batch, save=timer.due() and not parts.checkpointer.busy)
            if boundary_due(parts, step, agreement):
                finish(parts, pending)
                pending = None
                with telemetry.meter.paused():
                    reason = boundary(parts, step, agreement, timer)
                if reason is not None:
                    return reason
                if early_end(parts) is not None:
                    break
            assert batch is not None  # else a stop was wanted, and agreed on
            lr = planned_lr(context, step)
            done = None if step + 1 in state.left_out else run_step(parts, batch, agreement.n_parts, step + 1, lr)
            state.step = step + 1
            finish(parts, pending)
            pending = None
            if done is None or step + 1 in state.left_out:  # by now: its update was left out
                continue
            state.tokens_seen = state.tokens_seen + agreement.n_tokens
            pending = Pending(step, *done, lr, waited, agreement, state.tokens_seen, state.loss_scale)
            if not lag:
                finish(parts, pending)
                pending = None
        finish(parts, pending)
    finally:
        feed.close()
    return after_last_step(parts)


def prefetch(context: Context, data: Data, start_step: int) -> Prefetcher:
    """This rank's part of each step's batch, read ahead."""
    return Prefetcher(
        data.reader,
        start_step=start_step,
        stop_step=context.max_steps,
        first_slot=context.data_rank * context.share,
        n=context.share,
        pin_memory=context.device.type == "cuda",
    )


def await_batch(feed: Prefetcher, flag: StopFlag, beat: Callable[[], None]) -> Batch | None:
    """This rank's part of the next step; None if a stop is requested while it waits for a store."""
    while not feed.ready(STOP_CHECK_SECONDS):
        beat()
        if flag.reason() is not None:
            return None
    return next(feed)[1]


def agree(parts: Parts, step: int, batch: Batch | None, *, save: bool) -> Agreement:
    """One all-reduce on the host: parts, labels, tokens and hash of the batch, rank 0's wish to save, anybody's wish to
    stop.

    Now and then also how long each rank has computed.
    """
    telemetry = parts.telemetry
    data = [0, 0, 0, 0]
    if batch is not None and parts.context.counts_data:
        data = [parts.objective.parts(batch), batch.n_valid, batch.n_tokens, batch.data_hash]
    mine = [*data, int(save), *parts.flag.votes(), *telemetry.recorder.compute_votes(step)]
    telemetry.clock.enter("collective_wait")
    summed = sum_over_ranks(torch.tensor(mine, dtype=torch.int64)).tolist()
    telemetry.clock.enter("other")
    votes = 5 + len(REASONS)
    telemetry.recorder.ranks_computed(step, summed[votes:])
    n_parts, n_valid, n_tokens, data_hash, save = summed[:5]
    return Agreement(n_parts, n_valid, n_tokens, data_hash % 2**64, bool(save), agreed_reason(summed[5:votes]))


def run_step(parts: Parts, batch: Batch, n_parts: int, number: int, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
    context = parts.context
    learner = parts.learner
    if n_parts < 1:
        named = named_samples(context, parts.data, number - 1)
        raise ValueError(f"step {number}: no token has a label, so there is nothing to learn; its data: {named}")
    ramp_balance(context, learner.model, number - 1)
    copies, _ = mesh_shape(context.recipe.parallel, context.world.world_size)
    accepts = None if parts.guard is None else partial(parts.guard.accepts, number)
    objective = parts.objective
    state = learner.state
    if state.loss_scale is not None:
        objective = ScaledObjective(objective, state.loss_scale)
    means, norm = train_step(
        learner.model,
        learner.optimizer,
        micro_batches_of(context, batch, number - 1),
        n_parts=n_parts,
        number=number - state.skipped_steps,
        lr=lr,
        max_grad_norm=context.recipe.train.max_grad_norm,
        rules=UpdateRules(copies, context.recipe.train.max_grad_value, accepts),
        objective=objective,
        times=StepTimes(parts.telemetry.clock, parts.telemetry.recorder.time_on_device(number - 1)),
    )
    if state.loss_scale is not None:
        skipped = overflowed(norm)
        state.skipped_steps += skipped
        state.loss_scale, state.loss_scale_steps = next_scale(
            state.loss_scale, state.loss_scale_steps, overflowed=skipped
        )
    return means, norm


def finish(parts: Parts, pending: Pending | None) -> None:
    """Read a step's numbers, check them, report them."""
    if pending is None:
        return
    telemetry = parts.telemetry
    agreement = pending.agreement
    if parts.context.device.type == "cuda":  # it is at work, and the host waits for it
        telemetry.clock.enter("forward_backward", waiting=True)
    means = by_name(parts.objective, pending.means.tolist())
    loss = means["loss"]
    norm = float(pending.grad_norm)
    telemetry.clock.enter("other")
    skipped = pending.loss_scale is not None and not math.isfinite(norm) and pending.loss_scale >= SMALLEST_SCALE
    if not (math.isfinite(loss) and (math.isfinite(norm) or skipped)):
        telemetry.nonfinite(loss)
        raise nonfinite(parts, pending, loss, norm)
    telemetry.step(
        pending.step + 1,
        means=means,
        grad_norm=None if skipped else norm,
        lr=pending.lr,
        counts=TokenCounts(agreement.n_tokens, agreement.n_valid, pending.tokens_seen, ledger(parts, pending.step + 1)),
        waited=pending.waited,
        data_hash=agreement.data_hash,
    )
    if pending.loss_scale is not None:
        telemetry.scaled(pending.loss_scale, skipped=skipped)


def ledger(parts: Parts, steps: int) -> dict[str, int]:
    """Of a mixture, the tokens of each source in so many steps; rank 0 tells them."""
    context = parts.context
    if not context.world.is_main or len(context.workload.data.train) < 2:
        return {}
    names = source_names(context.workload.data, context.recipe)
    return dict(zip(names, parts.data.reader.tokens_read(steps), strict=True))


def by_name(objective: Objective, means: list[float]) -> dict[str, float]:
    return dict(zip(("loss", *objective.figures), means, strict=True))


def nonfinite(parts: Parts, pending: Pending, loss: float, norm: float) -> NonFiniteError:
    stability = parts.context.recipe.stability
    spent = f"stability.budget, {stability.budget} skips and rewinds in all, is spent"
    more = "or stability.on_nonfinite=skip" if stability.on_nonfinite == "fail" else spent
    return NonFiniteError(
        f"step {pending.step + 1}: loss {loss}, gradient norm {norm} (lr {pending.lr:.3g}); its data: "
        f"{named_samples(parts.context, parts.data, pending.step)}, data_hash {pending.agreement.data_hash:016x}. "
        "Nothing was saved after the last checkpoint; try a lower optimizer.lr, more schedule.warmup_steps, a smaller "
        f"train.max_grad_norm; {more}"
    )


def named_samples(context: Context, data: Data, step: int) -> str:
    """Names the samples that a step reads, the first few of each source."""
    (numbers,), (samples,) = data.reader.plan(step, 0, context.sizes.global_batch_size, 1)
    listed = []
    for number, source in enumerate(context.workload.data.train):
        mine = samples[numbers == number].tolist()
        if mine:
            listed.append(f"samples {', '.join(map(str, mine[:16]))}{' …' * (len(mine) > 16)} of {source.folder}")
    return "; ".join(listed)


def boundary_due(parts: Parts, step: int, agreement: Agreement) -> bool:
    if agreement.save or agreement.reason is not None:
        return True
    return validation_due(parts, step) or bool(points_due(parts, step)) or kind_of_save(parts, step) is not None


def early_end(parts: Parts) -> str | None:
    """The reason to end before the last step, as the validations so far have it."""
    config = parts.context.recipe.early_stopping
    return None if config is None else parts.learner.state.patience.verdict(config)


def final_step(parts: Parts) -> int:
    """No step follows it."""
    return parts.learner.state.step if early_end(parts) is not None else parts.context.max_steps


def kind_of_save(parts: Parts, step: int) -> CheckpointKind | None:
    """Of a checkpoint that is due at this step; None if none is."""
    every = parts.context.recipe.checkpoint.every_steps
    if step == final_step(parts) or (every is not None and step > 0 and step % every == 0):
        return "permanent"
    return "best" if any(one == step for one, _ in parts.learner.state.best) else None


def validation_due(parts: Parts, step: int) -> bool:
    if parts.data.held_out is None or parts.learner.state.validated_step == step:
        return False
    config = parts.context.recipe.validation
    if step == parts.context.max_steps or (step == 0 and config.at_start):
        return True
    return config.every_steps is not None and step > 0 and step % config.every_steps == 0


def points_due(parts: Parts, step: int) -> list[Point]:
    return [point for point in parts.points if point.due(step, is_last=step == final_step(parts))]


def boundary(parts: Parts, step: int, agreement: Agreement, timer: SaveTimer) -> str | None:
    """Between two steps: validate, save, ask, stop, each if due and agreed. The reason if training ends here early."""
    reason = agreement.reason
    if reason is None and validation_due(parts, step):
        reason = run_validation(parts, step)
    if reason is not None:
        begin_to_stop(parts, step, reason)
    asked = reason is None and bool(points_due(parts, step))
    if reason is not None or asked or agreement.save or kind_of_save(parts, step) is not None:
        save(parts, step)
        timer.reset()
    if asked and (reason := ask_points(parts, step)) is not None:
        begin_to_stop(parts, step, reason)
    if reason is not None:
        await_save(parts)
        report_saved(parts)
    return reason


def after_last_step(parts: Parts) -> str | None:
    """Save, then validate and ask: however long it takes, no step can be lost to it. The reason if it was cut short."""
    step = parts.learner.state.step
    save(parts, step)
    reason = run_validation(parts, step) if validation_due(parts, step) else None
    if reason is None and points_due(parts, step):
        reason = ask_points(parts, step)
    if reason is not None:
        begin_to_stop(parts, step, reason)
    await_save(parts)
    if reason is not None:
        report_saved(parts)
    return reason


def begin_to_stop(parts: Parts, step: int, reason: str) -> None:
    # The request may have reached another rank only.
    parts.flag.requested_at = parts.flag.requested_at or time.monotonic()
    parts.telemetry.stopping(step, reason)


def report_saved(parts: Parts) -> None:
    """Reports the agreed save as done, with the seconds since the stop request first reached this rank."""
    requested_at = parts.flag.requested_at
    if requested_at is not None:
        parts.telemetry.saved_before_stopping(time.monotonic() - requested_at)


def run_validation(parts: Parts, step: int) -> str | None:
    """Measure and record; the reason if a stop was agreed on in between (it is measured again after the resume)."""
    context = parts.context
    learner = parts.learner
    telemetry = parts.telemetry
    assert parts.data.held_out is not None
    telemetry.clock.enter("validation")
    telemetry.validating(step)
    reason: str | None = None

    def interrupted() -> bool:
        nonlocal reason
        _, reason = agree_while_waiting(parts, False)
        return reason is not None

    began = time.perf_counter()
    with averaged_weights(learner.optimizer, wanted=context.recipe.validation.ema):
        found = validation_means(
            learner.model,
            parts.data.held_out,
            parts.objective,
            sizes=context.sizes,
            data_rank=context.data_rank,
            device=context.device,
            max_batches=context.recipe.validation.max_batches,
            interrupted=interrupted,
        )
    telemetry.clock.enter("other")
    telemetry.training()
    if found is None:
        return reason
    means = by_name(parts.objective, found)
    take_figures(parts, step, means)
    telemetry.validated(step, means=means, seconds=round(time.perf_counter() - began, 3))
    return None


def take_figures(parts: Parts, step: int, means: Mapping[str, float]) -> None:
    """What the figures of a validation decide, the same on every rank."""
    state = parts.learner.state
    recipe = parts.context.recipe
    state.validation_loss = means["loss"]
    state.validated_step = step
    if step > 0:  # of which there is no checkpoint
        state.best = ranked(state.best, step, means, recipe.checkpoint)
    if recipe.early_stopping is not None:
        state.patience = state.patience.after(means, recipe.early_stopping)
        if (why := state.patience.verdict(recipe.early_stopping)) is not None and step < parts.context.max_steps:
            parts.telemetry.ending_early(step, why)


def agree_while_waiting(parts: Parts, done: bool) -> tuple[bool, str | None]:
    """A sign of life, and one all-reduce: is any rank done, and must all stop."""
    clock = parts.telemetry.clock
    clock.beat()
    votes = torch.tensor([int(done), *parts.flag.votes()], dtype=torch.int64)
    with clock.waits():
        n_done, *stops = sum_over_ranks(votes).tolist()
    return bool(n_done), agreed_reason(stops)


def ask_points(parts: Parts, step: int) -> str | None:
    """Ask the checkpoint of this step, which is saved first; the reason if a stop was agreed on in between."""
    telemetry = parts.telemetry
    telemetry.clock.enter("checkpoint_blocking")
    parts.checkpointer.wait()
    telemetry.clock.enter("validation")
    reason = next((reason for point in points_due(parts, step) if (reason := ask_point(parts, point, step))), None)
    telemetry.clock.enter("other")
    telemetry.training()
    return reason


def ask_point(parts: Parts, point: Point, step: int) -> str | None:
    telemetry = parts.telemetry
    saved = parts.checkpointer
    is_main = parts.context.world.is_main
    point.begin(telemetry, step)
    asking: Asking | None = None
    if is_main and saved.last_saved == step:
        asking = Asking(point.work, saved.run.path(saved.run.checkpoint_dir(step)), parts.context.device)
    reason = ask_together(asking, is_main=is_main, agree=partial(agree_while_waiting, parts))
    if reason is None:
        point.asked(step)
        if is_main:
            point.report(telemetry, step, asking, is_last=step == final_step(parts))
    return reason


def save(parts: Parts, step: int) -> None:
    """Begin to save the state after `step` steps, unless training resumed from that very step."""
    learner = parts.learner
    clock = parts.telemetry.clock
    clock.enter("checkpoint_blocking")
    if step > 0 and parts.checkpointer.last_saved != step:
        kind = kind_of_save(parts, step) or "temporary"
        parts.checkpointer.save(step, shards(learner.model, learner.optimizer), learner.state.to_json(), kind)
    clock.enter("other")


def await_save(parts: Parts) -> None:
    """Wait until the last save is committed; raises its error if it failed."""
    clock = parts.telemetry.clock
    clock.enter("checkpoint_blocking")
    parts.checkpointer.wait(must_succeed=True)
    clock.enter("other")
