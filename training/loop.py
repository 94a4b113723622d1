"""The one loop. Everything that is not a step happens at the boundary between two steps, agreed by all ranks.

Resuming is the same loop from a later step: the data, the learning rate and the schedule of saves are functions of
the step number.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from launchyard.run import events
from launchyard.run.append import Appender
from launchyard.training.batching import Batch
from launchyard.training.checkpoint.checkpointer import Checkpointer
from launchyard.training.checkpoint.commit import Kind
from launchyard.training.checkpoint.state import TrainState, shards
from launchyard.training.data.reader import Prefetcher, Samples, TokenReader
from launchyard.training.distributed import World, sum_over_ranks
from launchyard.training.optim.adamw import AdamW
from launchyard.training.optim.schedule import lr_at
from launchyard.training.parallel import mesh_shape
from launchyard.training.recipe import Recipe
from launchyard.training.spec import Workload
from launchyard.training.step import train_step
from launchyard.training.stop import REASONS, StopFlag, agreed_reason
from launchyard.training.telemetry.phases import PhaseClock
from launchyard.training.telemetry.recorder import Recorder
from launchyard.training.validate import validate

STOP_LOOK_SECONDS = 0.5  # while waiting for data


class NonFiniteError(Exception):
    """The loss or its gradient is no number any more."""


@dataclass(frozen=True)
class Parts:
    """What the loop works with; put together by the worker."""

    world: World
    recipe: Recipe
    workload: Workload
    batch: Batch
    max_steps: int
    device: torch.device
    model: nn.Module
    optimizer: AdamW
    state: TrainState
    reader: TokenReader
    held_out: TokenReader | None
    checkpointer: Checkpointer
    flag: StopFlag
    clock: PhaseClock
    exporter: Any
    rows: Appender | None  # rank 0
    validation_rows: Appender | None  # rank 0
    on_event: Any
    meter: Meter
    recorder: Recorder


@dataclass(frozen=True)
class Agreement:
    """What all ranks know before a step."""

    n_valid: int
    data_hash: int
    save: bool
    reason: str | None


@dataclass
class Pending:
    """A step whose numbers may still be on their way from the device."""

    step: int
    loss: torch.Tensor
    grad_norm: torch.Tensor
    lr: float
    waited: float
    agreement: Agreement
    tokens_seen: int


class Meter:
    """Seconds between one finished step and the next, data wait included, without what is done at a boundary."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds


def train(parts: Parts) -> str | None:
    """Train to the last step; the agreed reason if the run was asked to stop before (the state is saved then)."""
    state, clock, recipe = parts.state, parts.clock, parts.recipe
    share = parts.batch.global_batch_size // parts.world.world_size
    feed = Prefetcher(
        parts.reader,
        start_step=state.step,
        stop_step=parts.max_steps,
        first_slot=parts.world.rank * share,
        n=share,
        pin_memory=parts.device.type == "cuda",
    )
    timer = SaveTimer(recipe.checkpoint.every_minutes if parts.world.leads else None)
    pending: Pending | None = None
    lag = parts.device.type == "cuda"  # read the numbers of a step while the next one runs
    parts.exporter.state("training")
    parts.checkpointer.take_memory(shards(parts.model, parts.optimizer))
    parts.meter.reset()
    try:
        for step in range(state.step, parts.max_steps):
            clock.enter("data_wait")
            asked = time.perf_counter()
            samples = await_batch(feed, parts.flag, clock.beat)
            waited = time.perf_counter() - asked
            agreement = agree(parts, step, samples, save=timer.due() and not parts.checkpointer.busy)
            if boundary_due(parts, step, agreement):
                finish(parts, pending)
                pending = None
                with parts.meter.paused():
                    reason = boundary(parts, step, agreement, timer)
                if reason is not None:
                    return reason
            assert samples is not None  # else a stop was wanted, and agreed on
            lr = lr_at(step, max_steps=parts.max_steps, optimizer=recipe.optimizer, schedule=recipe.schedule)
            loss, norm = run_step(parts, samples, agreement.n_valid, step + 1, lr)
            state.step, state.tokens_seen = step + 1, state.tokens_seen + agreement.n_valid
            finish(parts, pending)
            pending = Pending(step, loss, norm, lr, waited, agreement, state.tokens_seen)
            if not lag:
                finish(parts, pending)
                pending = None
        finish(parts, pending)
    finally:
        feed.close()
    return after_last_step(parts)


def await_batch(feed: Prefetcher, flag: StopFlag, beat: Callable[[], None]) -> Samples | None:
    """This rank's part of the next step; None if it is asked to stop before that comes, from a store that is away."""
    while not feed.ready(STOP_LOOK_SECONDS):
        beat()
        if flag.reason() is not None:
            return None
    return next(feed)[1]


def agree(parts: Parts, step: int, samples: Samples | None, *, save: bool) -> Agreement:
    """One all-reduce on the host: tokens and hash of the batch, rank 0's wish to save, anybody's wish to stop.

    Now and then also how long each rank has computed.
    """
    data = [0, 0] if samples is None else [samples.n_valid, samples.data_hash]
    mine = [*data, int(save), *parts.flag.votes(), *parts.recorder.compute_votes(step)]
    parts.clock.enter("collective_wait")
    summed = sum_over_ranks(torch.tensor(mine, dtype=torch.int64)).tolist()
    parts.clock.enter("other")
    votes = 3 + len(REASONS)
    parts.recorder.ranks_computed(step, summed[votes:])
    return Agreement(summed[0], summed[1] % 2**64, bool(summed[2]), agreed_reason(summed[3:votes]))


def run_step(parts: Parts, samples: Any, n_valid: int, number: int, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = samples.inputs.to(parts.device, non_blocking=True).split(parts.batch.micro_batch_size)
    labels = samples.labels.to(parts.device, non_blocking=True).split(parts.batch.micro_batch_size)
    copies, _ = mesh_shape(parts.recipe.parallel, parts.world.world_size)
    return train_step(
        parts.model,
        parts.optimizer,
        list(zip(inputs, labels, strict=True)),
        n_valid=n_valid,
        number=number,
        lr=lr,
        max_grad_norm=parts.recipe.train.max_grad_norm,
        copies=copies,
        clock=parts.clock,
        device_time=parts.recorder.time_on_device(number - 1),
    )


def finish(parts: Parts, pending: Pending | None) -> None:
    """Read a step's numbers, check them, write its row."""
    if pending is None:
        return
    if parts.device.type == "cuda":  # it is at work, and the host waits for it
        parts.clock.enter("forward_backward", waiting=True)
    loss, norm, agreement = float(pending.loss), float(pending.grad_norm), pending.agreement
    seconds = parts.meter.lap()
    parts.clock.enter("other")
    if not (math.isfinite(loss) and math.isfinite(norm)):
        parts.exporter.add("trainer_nonfinite_steps_total")
        parts.exporter.set("trainer_loss", loss)
        raise nonfinite(parts, pending, loss, norm)
    row = {
        "step": pending.step + 1,
        "loss": loss,
        "grad_norm": norm,
        "lr": pending.lr,
        "tokens_seen": pending.tokens_seen,
        "tokens_per_second": round(agreement.n_valid / seconds, 1),
        "step_seconds": round(seconds, 6),
        "data_wait_seconds": round(pending.waited, 6),
        "data_hash": f"{agreement.data_hash:016x}",
    }
    parts.recorder.step(row, agreement.n_valid)


def nonfinite(parts: Parts, pending: Pending, loss: float, norm: float) -> NonFiniteError:
    return NonFiniteError(
        f"step {pending.step + 1}: loss {loss}, gradient norm {norm} (lr {pending.lr:.3g}); its data: "
        f"{named_samples(parts, pending.step)}, data_hash {pending.agreement.data_hash:016x}. Nothing was saved after "
        "the last checkpoint; try a lower optimizer.lr, more schedule.warmup_steps, a smaller train.max_grad_norm"
    )


def named_samples(parts: Parts, step: int) -> str:
    """Which samples of which sources a step reads, the first few of each."""
    (numbers,), (samples,) = parts.reader.plan(step, 0, parts.batch.global_batch_size, 1)
    words = []
    for number, source in enumerate(parts.workload.data.train):
        mine = samples[numbers == number].tolist()
        if mine:
            words.append(f"samples {', '.join(map(str, mine[:16]))}{' …' * (len(mine) > 16)} of {source.folder}")
    return "; ".join(words)


def boundary_due(parts: Parts, step: int, agreement: Agreement) -> bool:
    return agreement.save or agreement.reason is not None or validation_due(parts, step) or permanent_due(parts, step)


def permanent_due(parts: Parts, step: int) -> bool:
    every = parts.recipe.checkpoint.every_steps
    return step == parts.max_steps or (every is not None and step > 0 and step % every == 0)


def validation_due(parts: Parts, step: int) -> bool:
    if parts.held_out is None or parts.state.validated_step == step:
        return False
    every, at_start = parts.recipe.validation.every_steps, parts.recipe.validation.at_start
    return step == parts.max_steps or (step == 0 and at_start) or (every is not None and step > 0 and step % every == 0)


def boundary(parts: Parts, step: int, agreement: Agreement, timer: SaveTimer) -> str | None:
    """Between two steps: validate, save, stop, each if due and agreed. The reason if training ends here early."""
    reason = agreement.reason
    if reason is None and validation_due(parts, step):
        reason = run_validation(parts, step)
    if reason is not None:
        tell_stopping(parts, step, reason)
    if reason is not None or agreement.save or permanent_due(parts, step):
        save(parts, step)
        timer.reset()
    if reason is not None:
        await_save(parts)
        tell_saved(parts)
    return reason


def after_last_step(parts: Parts) -> str | None:
    """Save, then validate: however long that takes, no step can be lost to it. The reason if it was cut short."""
    step = parts.state.step
    save(parts, step)
    reason = run_validation(parts, step) if validation_due(parts, step) else None
    if reason is not None:
        tell_stopping(parts, step, reason)
    await_save(parts)
    if reason is not None:
        tell_saved(parts)
    return reason


def tell_stopping(parts: Parts, step: int, reason: str) -> None:
    parts.flag.heard = parts.flag.heard or time.monotonic()  # another rank may have heard of it, and this one from it
    parts.on_event(events.STOPPING, step=step, reason=reason)
    parts.exporter.state("stopping")
    parts.exporter.add("trainer_preemptions_total", source=reason)


def tell_saved(parts: Parts) -> None:
    """All that was asked for has been saved; the seconds since this rank first heard of it."""
    heard = parts.flag.heard
    if heard is not None:
        parts.exporter.set("trainer_preempt_save_duration_seconds", time.monotonic() - heard)
        parts.on_event(events.SAVED_BEFORE_STOPPING, seconds=round(time.monotonic() - heard, 3))


def run_validation(parts: Parts, step: int) -> str | None:
    """Measure and record; the reason if a stop was agreed on in between (it is measured again after the resume)."""
    assert parts.held_out is not None
    parts.clock.enter("validation")
    parts.exporter.state("validating")
    parts.on_event(events.VALIDATING, step=step)
    reason: str | None = None

    def interrupted() -> bool:
        nonlocal reason
        parts.clock.beat()
        votes = torch.tensor(parts.flag.votes(), dtype=torch.int64)
        with parts.clock.waits():
            reason = agreed_reason(sum_over_ranks(votes).tolist())
        return reason is not None

    began = time.perf_counter()
    loss = validate(
        parts.model,
        parts.held_out,
        batch=parts.batch,
        world=parts.world,
        device=parts.device,
        max_batches=parts.recipe.validation.max_batches,
        interrupted=interrupted,
    )
    parts.clock.enter("other")
    parts.exporter.state("training")
    if loss is None:
        return reason
    parts.state.validation_loss, parts.state.validated_step = loss, step
    seconds = round(time.perf_counter() - began, 3)
    if parts.validation_rows is not None:
        row = {"step": step, "loss": loss, "seconds": seconds, "attempt": parts.world.attempt, "time": time.time()}
        parts.validation_rows.add(row)
        parts.recorder.validated(row)
    parts.exporter.set("trainer_validation_loss", loss, dataset="validation")
    parts.on_event(events.VALIDATED, step=step, loss=loss, seconds=seconds)
    return None


def save(parts: Parts, step: int) -> None:
    """Begin to save the state after `step` steps, unless it is what training went on from."""
    parts.clock.enter("checkpoint_blocking")
    if step > 0 and parts.checkpointer.last_saved != step:
        kind: Kind = "permanent" if permanent_due(parts, step) else "temporary"
        parts.checkpointer.save(step, shards(parts.model, parts.optimizer), parts.state.to_json(), kind)
    parts.clock.enter("other")


def await_save(parts: Parts) -> None:
    """Until the last save is committed; raises what kept it from that."""
    parts.clock.enter("checkpoint_blocking")
    parts.checkpointer.wait(must_succeed=True)
    parts.clock.enter("other")


class SaveTimer:
    """Rank 0's clock for temporary checkpoints; other ranks have none and follow."""

    def __init__(self, every_minutes: float | None) -> None:
        self._every = every_minutes * 60 if every_minutes is not None else math.inf
        self.reset()

    def reset(self) -> None:
        self._since = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._since >= self._every
