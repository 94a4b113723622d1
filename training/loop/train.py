"""The one loop. Everything that is not a step happens at the boundary between two steps, agreed by all ranks.

Resuming is the same loop from a later step: the data, the learning rate and the schedule of saves are functions of
the step number.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from launchyard.model.network.transfers import ReadBack
from launchyard.training.batching import Context
from launchyard.training.checkpoint.save_timer import SaveTimer, Stopwatch
from launchyard.training.checkpoint.state import shards
from launchyard.training.data.reader import Batch, Prefetcher
from launchyard.training.loop.agree import agree
from launchyard.training.loop.boundary import (
    after_last_step,
    boundary,
    boundary_due,
    early_end,
    end_by_code,
    end_for_time,
    final_step,
)
from launchyard.training.loop.numbers import Pending, finish, run_step
from launchyard.training.loop.parts import Data, Parts
from launchyard.training.loop.sanity import check_validation
from launchyard.training.stability.guard import RewindError
from launchyard.training.stability.rewind import go_back
from launchyard.training.stop import StopFlag

STOP_CHECK_SECONDS = 0.5  # while waiting for data


def train(parts: Parts) -> str | None:
    """Train to the last step; the agreed reason if the run was asked to stop before (the state is saved then)."""
    learner = parts.learner
    check_validation(parts)
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
    watch = Stopwatch(state.seconds_trained)
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
            parts.profiler.begin(step + 1)
            clock.enter("data_wait")
            began = time.perf_counter()
            batch = await_batch(feed, parts.flag, clock.beat)
            waited = time.perf_counter() - began
            wants_save = timer.due() and not parts.checkpointer.busy
            agreement = agree(parts, step, batch, save=wants_save, seconds=watch.seconds)
            if end_by_code(parts, agreement) or end_for_time(parts, agreement):
                break
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
            lr = parts.rate(context, step)
            done = None if step + 1 in state.left_out else run_step(parts, batch, agreement.n_parts, step + 1, lr)
            state.step = step + 1
            finish(parts, pending)
            pending = None
            if done is None or step + 1 in state.left_out:  # by now: its update was left out
                continue
            state.tokens_seen = state.tokens_seen + agreement.n_tokens
            numbers = ReadBack(torch.cat([done[0], done[1].reshape(1)]))
            pending = Pending(step, numbers, lr, waited, agreement, state.tokens_seen, state.loss_scale)
            if not lag:
                finish(parts, pending)
                pending = None
        finish(parts, pending)
    finally:
        parts.profiler.end()
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
