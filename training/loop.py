"""The one loop. Everything that is not a step happens at the boundary between two steps, agreed by all ranks.

Resuming is the same loop from a later step: the data, the learning rate and the schedule of saves are functions of
the step number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from launchyard.training.batching import Context, sequences_before, sequences_in
from launchyard.training.build import balance_experts
from launchyard.training.checkpoint.checkpointer import Checkpointer
from launchyard.training.checkpoint.commit import CheckpointKind
from launchyard.training.checkpoint.state import TrainState, shards
from launchyard.training.data.micro_batch import MicroBatch, micro_batches
from launchyard.training.data.reader import Batch, Prefetcher, Reader
from launchyard.training.distributed import sum_over_ranks
from launchyard.training.objectives.objective import Objective
from launchyard.training.optim.base import Optimizer
from launchyard.training.optim.schedule import lr_at
from launchyard.training.parallel import mesh_shape
from launchyard.training.sections.ramp import ramped
from launchyard.training.step import StepTimes, train_step
from launchyard.training.stop import REASONS, StopFlag, agreed_reason
from launchyard.training.telemetry.telemetry import Telemetry, TokenCounts
from launchyard.training.validate import validation_means

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


def train(parts: Parts) -> str | None:
    """Train to the last step; the agreed reason if the run was asked to stop before (the state is saved then)."""
    context = parts.context
    learner = parts.learner
    telemetry = parts.telemetry
    state = learner.state
    clock = telemetry.clock
    recipe = context.recipe
    timer = SaveTimer(recipe.checkpoint.every_minutes if context.world.is_main else None)
    pending: Pending | None = None
    lag = context.device.type == "cuda"  # read the numbers of a step while the next one runs
    telemetry.training()
    parts.checkpointer.allocate_staging(shards(learner.model, learner.optimizer))
    feed = prefetch(context, parts.data, state.step)
    telemetry.meter.reset()
    try:
        for step in range(state.step, context.max_steps):
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
            assert batch is not None  # else a stop was wanted, and agreed on
            lr = lr_at(
                step,
                max_steps=context.max_steps,
                optimizer=recipe.optimizer,
                schedule=recipe.schedule,
                consumed=partial(sequences_before, recipe.train),
            )
            means, norm = run_step(parts, batch, agreement.n_parts, step + 1, lr)
            state.step = step + 1
            state.tokens_seen = state.tokens_seen + agreement.n_tokens
            finish(parts, pending)
            pending = Pending(step, means, norm, lr, waited, agreement, state.tokens_seen)
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
        first_slot=context.world.rank * context.share,
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
    if batch is not None:
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
    micro = micro_batches_of(context, batch, number - 1)
    ramp_balance(context, learner.model, number - 1)
    copies, _ = mesh_shape(context.recipe.parallel, context.world.world_size)
    return train_step(
        learner.model,
        learner.optimizer,
        micro,
        n_parts=n_parts,
        number=number,
        lr=lr,
        max_grad_norm=context.recipe.train.max_grad_norm,
        copies=copies,
        objective=parts.objective,
        times=StepTimes(parts.telemetry.clock, parts.telemetry.recorder.time_on_device(number - 1)),
    )


def micro_batches_of(context: Context, batch: Batch, step: int) -> list[MicroBatch]:
    """This worker's part of a step as the model takes it, its sequences cut where a ramp has shorter ones."""
    cuts = sequence_cuts(context, step)
    cut = batch.cut_into(cuts) if cuts > 1 else batch
    size = context.sizes.micro_batch_size * cuts
    return micro_batches(cut, size, context.device, first_slot=context.first_slot(step) * cuts)


def sequence_cuts(context: Context, step: int) -> int:
    """Into how many a sequence is cut in a step."""
    data = context.recipe.data
    return data.seq_len // ramped(data.seq_len_ramp, step, data.seq_len)


def ramp_balance(context: Context, model: nn.Module, step: int) -> None:
    """The loss that balances experts is a mean over sequences, whose number a ramp changes."""
    recipe = context.recipe
    if recipe.train.load_balancing_loss and (recipe.train.batch_size_ramp or recipe.data.seq_len_ramp):
        balance_experts(model, recipe, sequences_in(recipe.train, step) * sequence_cuts(context, step))


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
    if not (math.isfinite(loss) and math.isfinite(norm)):
        telemetry.nonfinite(loss)
        raise nonfinite(parts, pending, loss, norm)
    telemetry.step(
        pending.step + 1,
        means=means,
        grad_norm=norm,
        lr=pending.lr,
        counts=TokenCounts(agreement.n_tokens, agreement.n_valid, pending.tokens_seen),
        waited=pending.waited,
        data_hash=agreement.data_hash,
    )


def by_name(objective: Objective, means: list[float]) -> dict[str, float]:
    return dict(zip(("loss", *objective.figures), means, strict=True))


def nonfinite(parts: Parts, pending: Pending, loss: float, norm: float) -> NonFiniteError:
    return NonFiniteError(
        f"step {pending.step + 1}: loss {loss}, gradient norm {norm} (lr {pending.lr:.3g}); its data: "
        f"{named_samples(parts.context, parts.data, pending.step)}, data_hash {pending.agreement.data_hash:016x}. "
        "Nothing was saved after the last checkpoint; try a lower optimizer.lr, more schedule.warmup_steps, a smaller "
        "train.max_grad_norm"
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
    return validation_due(parts, step) or permanent_due(parts.context, step)


def permanent_due(context: Context, step: int) -> bool:
    every = context.recipe.checkpoint.every_steps
    return step == context.max_steps or (every is not None and step > 0 and step % every == 0)


def validation_due(parts: Parts, step: int) -> bool:
    if parts.data.held_out is None or parts.learner.state.validated_step == step:
        return False
    config = parts.context.recipe.validation
    if step == parts.context.max_steps or (step == 0 and config.at_start):
        return True
    return config.every_steps is not None and step > 0 and step % config.every_steps == 0


def boundary(parts: Parts, step: int, agreement: Agreement, timer: SaveTimer) -> str | None:
    """Between two steps: validate, save, stop, each if due and agreed. The reason if training ends here early."""
    reason = agreement.reason
    if reason is None and validation_due(parts, step):
        reason = run_validation(parts, step)
    if reason is not None:
        begin_to_stop(parts, step, reason)
    if reason is not None or agreement.save or permanent_due(parts.context, step):
        save(parts, step)
        timer.reset()
    if reason is not None:
        await_save(parts)
        report_saved(parts)
    return reason


def after_last_step(parts: Parts) -> str | None:
    """Save, then validate: however long that takes, no step can be lost to it. The reason if it was cut short."""
    step = parts.learner.state.step
    save(parts, step)
    reason = run_validation(parts, step) if validation_due(parts, step) else None
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
        telemetry.clock.beat()
        votes = torch.tensor(parts.flag.votes(), dtype=torch.int64)
        with telemetry.clock.waits():
            reason = agreed_reason(sum_over_ranks(votes).tolist())
        return reason is not None

    began = time.perf_counter()
    with learner.optimizer.evaluating():
        found = validation_means(
            learner.model,
            parts.data.held_out,
            parts.objective,
            sizes=context.sizes,
            world=context.world,
            device=context.device,
            max_batches=context.recipe.validation.max_batches,
            interrupted=interrupted,
        )
    telemetry.clock.enter("other")
    telemetry.training()
    if found is None:
        return reason
    means = by_name(parts.objective, found)
    learner.state.validation_loss = means["loss"]
    learner.state.validated_step = step
    telemetry.validated(step, means=means, seconds=round(time.perf_counter() - began, 3))
    return None


def save(parts: Parts, step: int) -> None:
    """Begin to save the state after `step` steps, unless training resumed from that very step."""
    learner = parts.learner
    clock = parts.telemetry.clock
    clock.enter("checkpoint_blocking")
    if step > 0 and parts.checkpointer.last_saved != step:
        kind: CheckpointKind = "permanent" if permanent_due(parts.context, step) else "temporary"
        parts.checkpointer.save(step, shards(learner.model, learner.optimizer), learner.state.to_json(), kind)
    clock.enter("other")


def await_save(parts: Parts) -> None:
    """Wait until the last save is committed; raises its error if it failed."""
    clock = parts.telemetry.clock
    clock.enter("checkpoint_blocking")
    parts.checkpointer.wait(must_succeed=True)
    clock.enter("other")


class SaveTimer:
    """Rank 0's clock for temporary checkpoints; other ranks have none and follow."""

    def __init__(self, every_minutes: float | None) -> None:
        self._every = every_minutes * 60 if every_minutes is not None else math.inf
        self.reset()

    def reset(self) -> None:
        self._since = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._since >= self._every
