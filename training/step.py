"""One optimizer step, usable by itself: micro batches in, loss and gradient norm out.

The loss is divided by the number of labels (or pairs) of the whole global batch, over all micro batches and all ranks,
so accumulation and any number of workers give the result of one big batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launchyard.model.adapt.noise import Moment
from launchyard.model.network.transfers import in_fp64
from launchyard.model.parallel.spans import span_of
from launchyard.model.parallel.trained import tensor_ranks_of
from launchyard.training.data.micro_batch import MicroBatch, stretch_of
from launchyard.training.distributed import sum_over_ranks
from launchyard.training.objectives.next_token import NextToken
from launchyard.training.objectives.objective import Objective
from launchyard.training.optim.base import Optimizer
from launchyard.training.optim.grad_norms import Observer
from launchyard.training.parallel import clean_name, local, owned_parameters
from launchyard.training.precision.loss_scale import ScaledObjective
from launchyard.training.telemetry.phases import PhaseClock

NEXT_TOKEN = NextToken()


def forward_backward(
    model: nn.Module, micro_batches: Sequence[MicroBatch], *, n_parts: int, objective: Objective = NEXT_TOKEN
) -> Tensor:
    """Accumulate gradients of the objective's mean over `n_parts`, those of the global batch.

    This rank's part of the loss and of the objective's figures, (1 + figures,) fp32. Gradients are reduced over ranks
    with the last micro batch only. ValueError if there is no part.
    """
    if n_parts < 1:
        raise ValueError("no token of this step has a label; every step must have one")
    total: Tensor | None = None
    scale = 1.0 / n_parts
    for number, batch in enumerate(micro_batches, start=1):
        if hasattr(model, "set_requires_gradient_sync"):
            model.set_requires_gradient_sync(number == len(micro_batches))
        _stand_for(model, batch)
        batch = stretch_of(batch, span_of(model))
        values = objective(model, batch, scale)
        values[0].backward()
        total = values.detach() if total is None else total + values.detach()
    assert total is not None
    _sum_partial(model)
    return objective.unscale(model, total) if isinstance(objective, ScaledObjective) else total


def _stand_for(model: nn.Module, batch: MicroBatch) -> None:
    """Tell the dropout of an adapter which slots it sees."""
    moment: Moment | None = getattr(model, "moment", None)
    if moment is not None:
        moment.first_slot = batch.first_slot
        moment.tokens = batch.tokens


@contextmanager
def _during(model: nn.Module, step: int) -> Iterator[None]:
    """With the dropout of an adapter, which there is in a step alone."""
    moment: Moment | None = getattr(model, "moment", None)
    if moment is not None:
        moment.step = step
    yield
    if moment is not None:
        moment.step = None


@torch.no_grad()
def reduce_and_clip(
    model: nn.Module,
    values: Tensor,
    *,
    max_grad_norm: float | None,
    max_grad_value: float | None = None,
    copies: int = 1,
    waits: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[Tensor, Tensor]:
    """(means of the global batch, global gradient norm before clipping), fp64, the same on every rank.

    values: this rank's parts of the means, (n,): the loss, and what is measured beside it. One collective for all,
    inside `waits()`. `copies`: how many ranks hold the same part of each gradient (dp_replicate). `max_grad_value`
    bounds each number of it, after its norm was.
    """
    grads = [local(p.grad) for p in model.parameters() if p.grad is not None]
    nonempty = [grad for grad in grads if grad.numel()]  # a rank beyond the last row of a small tensor holds nothing
    mine = [local(p.grad) for _, p in owned_parameters(model) if p.grad is not None and local(p.grad).numel()]
    norm = _norm_of(mine) if mine else values.new_zeros(())
    sharing = tensor_ranks_of(model)
    counts = sharing is None or sharing.rank == 0
    summed = torch.cat([in_fp64(values) * counts, in_fp64(norm.to(values.device)).square()[None] / copies])
    with waits():
        sum_over_ranks(summed)
    means = summed[:-1]
    norm = summed[-1].sqrt()
    if max_grad_norm is not None and nonempty:
        factor = torch.clamp(max_grad_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(nonempty, factor.to(nonempty[0]))
    if max_grad_value is not None and nonempty:
        for grad in nonempty:
            grad.clamp_(-max_grad_value, max_grad_value)
    return means, norm


@torch.no_grad()
def _sum_partial(model: nn.Module) -> None:
    """Over ranks that share matrices: gradients of which each has made a part."""
    sharing = tensor_ranks_of(model)
    if sharing is None:
        return
    partial = {*model.partial_gradients()}
    for name, parameter in model.named_parameters():
        if clean_name(name) in partial and parameter.grad is not None:
            own = local(parameter.grad)
            own.copy_(sharing.summed(own))


def _norm_of(grads: list[Tensor]) -> Tensor:
    """Summed in fp32 where gradients have fewer bits."""
    if grads[0].dtype != torch.bfloat16:
        return torch.nn.utils.get_total_norm(grads)
    return torch.stack([torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads]).norm()


@dataclass(frozen=True)
class StepTimes:
    """Receivers of the times of a step. device: recorded around the update, which no other rank takes part in."""

    clock: PhaseClock
    device: tuple[torch.cuda.Event, torch.cuda.Event] | None = None


def overflowed(norm: Tensor) -> bool:
    """True of a gradient that no update is made from; all ranks have the same norm, so they agree."""
    return not bool(torch.isfinite(norm))


@dataclass(frozen=True)
class UpdateRules:
    """What becomes of a gradient beside its norm. accepts: asked with a step's means and its norm, the same on all
    ranks; False leaves weights and moments as they are. Whoever asks for a number there waits for the device.
    observe: told when the gradient is whole, before it is clipped."""

    copies: int = 1  # of each part of a gradient, over ranks (dp_replicate)
    max_grad_value: float | None = None
    accepts: Callable[[Tensor, Tensor], bool] | None = None
    observe: Observer | None = None


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    micro_batches: Sequence[MicroBatch],
    *,
    n_parts: int,
    number: int,
    lr: float,
    max_grad_norm: float | None,
    rules: UpdateRules | None = None,
    objective: Objective = NEXT_TOKEN,
    times: StepTimes | None = None,
) -> tuple[Tensor, Tensor]:
    """Forward, backward, clip, update number 1, 2 …; on the device: (means of the global batch, gradient norm).

    The means are of the loss and of the objective's figures, (1 + figures,). A scaled objective leaves the weights as
    they are where its gradient has overflowed.
    """
    times = times or StepTimes(PhaseClock())
    rules = rules or UpdateRules()
    clock = times.clock
    clock.enter("forward_backward")
    with _during(model, number):
        values = forward_backward(model, micro_batches, n_parts=n_parts, objective=objective)
    clock.enter("optimizer")
    if rules.observe is not None:
        rules.observe(clock.waits)
    means, norm = reduce_and_clip(
        model,
        values,
        max_grad_norm=max_grad_norm,
        max_grad_value=rules.max_grad_value,
        copies=rules.copies,
        waits=clock.waits,
    )
    if times.device is not None:
        times.device[0].record()
    updates = not (isinstance(objective, ScaledObjective) and overflowed(norm))
    if rules.accepts is not None and (updates or overflowed(means[0])):  # a loss that no other scale would help
        updates = rules.accepts(means, norm) and updates
    if updates:
        optimizer.step(number, lr)
    if times.device is not None:
        times.device[1].record()
    optimizer.zero_grad()
    return means, norm
