"""Back to an earlier state of the same run, in the same processes: the newest checkpoint before it, and from there.

The steps from the checkpoint on are made again, bit for bit, up to those that are passed over; so it does not matter
how old the checkpoint is. What a kill takes away of it is found again by the resumed run.
"""

from __future__ import annotations

import torch
from torch import nn

from launchyard.run import events
from launchyard.run.checkpoints import RunCheckpoints
from launchyard.run.rundir import RunDir
from launchyard.training.batching import Context
from launchyard.training.build import fill_weights
from launchyard.training.checkpoint.checkpointer import Checkpointer
from launchyard.training.checkpoint.state import TrainState, first_state, shards
from launchyard.training.distributed import from_rank_zero
from launchyard.training.optim.averaged import with_average
from launchyard.training.optim.base import Optimizer
from launchyard.training.precision.rounded import open_optimizer
from launchyard.training.stability.guard import RewindError, UnstableError
from launchyard.training.telemetry.telemetry import Telemetry


def go_back(
    wanted: RewindError,
    context: Context,
    checkpointer: Checkpointer,
    telemetry: Telemetry,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    state: TrainState,
) -> None:
    """Set model, optimizer and state to those before `wanted.steps`, or earlier; these are passed over from now on.

    Checkpoints after that state are removed: no step leads to them any more. UnstableError if those before it are gone.
    """
    telemetry.clock.enter("checkpoint_blocking")
    optimizer.zero_grad()
    target = wanted.steps[0] - 1
    checkpointer.wait()
    checkpoint = from_rank_zero(_checkpoint_before(checkpointer.run, target) if context.world.is_main else None)
    if checkpoint is None:
        raise UnstableError(
            f"step {wanted.harm.step}: {wanted.harm.cause}, and no checkpoint from before step {target + 1} is left; "
            f"its data: {wanted.harm.data}. Keep more (checkpoint.keep), or set a smaller stability.rewind_steps"
        )
    # On record before anything is removed: else a kill in between would leave checkpoints that are missed.
    telemetry.rewound(wanted.harm, target=target, checkpoint=checkpoint, n_steps=len(wanted.steps))
    checkpointer.drop_after(target)
    manifest = checkpointer.load_newest(shards(model, optimizer), at_most=target)
    if manifest is None:
        _start_over(context, model, optimizer)
    optimizer.begin(resumed=manifest is not None)
    first = first_state(context.recipe.train.precision)
    before = first if manifest is None else TrainState.from_json(manifest.train_state)
    before.left_out = sorted({*before.left_out, *state.left_out, *wanted.steps})
    before.interventions = state.interventions + 1
    state.become(before)
    telemetry.clock.enter("other")


def _checkpoint_before(run: RunDir, target: int) -> int | None:
    """The newest up to a step; 0 where none was ever saved, so that the beginning is near; None where all are gone."""
    found = next((step for step in RunCheckpoints(run).counting() if step <= target), None)
    if found is not None:
        return found
    saved = (one for attempt in run.attempts() for one in run.events(attempt) if one["event"] == events.SAVED)
    return None if any(int(one["step"]) <= target for one in saved) else 0


@torch.no_grad()
def _start_over(context: Context, model: nn.Module, optimizer: Optimizer) -> None:
    """The first weights, and an optimizer that has seen no gradient and begins after this."""
    recipe = context.recipe
    fill_weights(model, context.workload.model, recipe, adapter=context.workload.adapter)
    fresh = with_average(open_optimizer(model, recipe), model, recipe.train.ema_decay)
    for parameter in model.parameters():
        first = fresh.state(parameter)
        for key, entry in optimizer.state(parameter).items():
            entry.tensor.copy_(first[key].tensor)
