"""One step and its numbers: run it, then read them, check them and report them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from launchyard.model.network.transfers import ReadBack
from launchyard.training.batching import Context
from launchyard.training.build import ramp_balance
from launchyard.training.data.micro_batch import micro_batches_of
from launchyard.training.data.reader import Batch
from launchyard.training.loop.parts import Agreement, Data, Learner, Parts
from launchyard.training.objectives.objective import Objective
from launchyard.training.optim.grad_norms import GradNorms
from launchyard.training.own.values import StepDone
from launchyard.training.parallel import mesh_shape
from launchyard.training.precision.loss_scale import SMALLEST_SCALE, ScaledObjective, next_scale
from launchyard.training.spec import source_names
from launchyard.training.stability.guard import Guard
from launchyard.training.step import StepTimes, UpdateRules, overflowed, train_step
from launchyard.training.telemetry.telemetry import GradientNorm, TokenCounts


class NonFiniteError(Exception):
    """The loss or its gradient is no number any more."""


@dataclass
class Pending:
    """A step whose numbers may still be on their way from the device."""

    step: int
    numbers: ReadBack  # the loss, the objective's figures, and the gradient norm
    lr: float
    waited: float
    agreement: Agreement
    tokens_seen: int
    loss_scale: float | None  # after this step


class StepParts(Protocol):
    """All that a step works with: the parts of a loop, or of somebody who makes the steps themselves."""

    @property
    def context(self) -> Context: ...
    @property
    def learner(self) -> Learner: ...
    @property
    def data(self) -> Data: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def guard(self) -> Guard | None: ...
    @property
    def grad_norms(self) -> GradNorms | None: ...


def run_step(parts: Parts, batch: Batch, n_parts: int, number: int, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
    times = StepTimes(parts.telemetry.clock, parts.telemetry.recorder.time_on_device(number - 1))
    return make_step(parts, batch, n_parts, number, lr, times)


def make_step(
    parts: StepParts, batch: Batch, n_parts: int, number: int, lr: float, times: StepTimes | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Step 1, 2, 3 … from this rank's part of its batch; `n_parts` are those of all ranks.

    (the loss and the objective's figures, gradient norm), on the device.
    """
    context = parts.context
    learner = parts.learner
    if n_parts < 1:
        named = named_samples(context, parts.data, number - 1)
        raise ValueError(f"step {number}: no token has a label, so there is nothing to learn; its data: {named}")
    ramp_balance(context, learner.model, number - 1)
    copies, _ = mesh_shape(context.recipe.parallel, context.world.world_size)
    accepts = None if parts.guard is None else partial(parts.guard.accepts, number)
    observe = None if parts.grad_norms is None else parts.grad_norms.observer(number)
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
        rules=UpdateRules(copies, context.recipe.train.max_grad_value, accepts, observe),
        objective=objective,
        times=times,
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
    *read, norm = pending.numbers.numbers()
    means = by_name(parts.objective, read)
    loss = means["loss"]
    telemetry.clock.enter("other")
    skipped = was_skipped(norm, pending.loss_scale)
    if not (math.isfinite(loss) and (math.isfinite(norm) or skipped)):
        telemetry.nonfinite(loss)
        raise nonfinite(parts, pending, loss, norm)
    telemetry.step(
        pending.step + 1,
        means=means | own_figures(parts, pending, means, None if skipped else norm),
        gradient=GradientNorm() if skipped else gradient_norm(parts, pending.step + 1, norm),
        lr=pending.lr,
        counts=TokenCounts(agreement.n_tokens, agreement.n_valid, pending.tokens_seen, ledger(parts, pending.step + 1)),
        waited=pending.waited,
        data_hash=agreement.data_hash,
    )
    if pending.loss_scale is not None:
        telemetry.scaled(pending.loss_scale, skipped=skipped)


def own_figures(parts: Parts, pending: Pending, means: dict[str, float], norm: float | None) -> dict[str, float]:
    """What the user's own code makes of a step, on rank 0."""
    if parts.hooks is None:
        return {}
    agreement = pending.agreement
    done = StepDone(
        step=pending.step + 1,
        loss=means["loss"],
        grad_norm=norm,
        lr=pending.lr,
        tokens=agreement.n_tokens,
        labels=agreement.n_valid,
        tokens_seen=pending.tokens_seen,
        figures={name: value for name, value in means.items() if name != "loss"},
    )
    return parts.hooks.on_step(done)


def gradient_norm(parts: Parts, number: int, norm: float) -> GradientNorm:
    if parts.grad_norms is None:
        return GradientNorm(norm)
    return GradientNorm(norm, *parts.grad_norms.take(number))


def was_skipped(norm: float, loss_scale: float | None) -> bool:
    """Did a step leave the weights as they were, for its gradient has overflowed? loss_scale: after it."""
    return loss_scale is not None and not math.isfinite(norm) and loss_scale >= SMALLEST_SCALE


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
