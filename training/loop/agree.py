"""What all ranks agree on, each time in one all-reduce on the host."""

from __future__ import annotations

import torch

from launchyard.training.data.reader import Batch
from launchyard.training.distributed import sum_over_ranks
from launchyard.training.loop.parts import Agreement, Parts
from launchyard.training.stop import REASONS, agreed_reason


def agree(parts: Parts, step: int, batch: Batch | None, *, save: bool, seconds: float) -> Agreement:
    """One all-reduce on the host: parts, labels, tokens and hash of the batch, rank 0's wish to save, the seconds
    trained by its clock, the wish of the user's own code to end, rank 0's for a copy in memory, anybody's wish to stop.

    Now and then also how long each rank has computed.
    """
    telemetry = parts.telemetry
    data = [0, 0, 0, 0]
    if batch is not None and parts.context.counts_data:
        data = [parts.objective.parts(batch), batch.n_valid, batch.n_tokens, batch.data_hash]
    milliseconds = round(1000 * seconds) if parts.context.world.is_main else 0
    ends = parts.hooks is not None and parts.hooks.wants_end is not None
    wishes = [int(save), milliseconds, int(ends), *parts.checkpointer.votes(step), *parts.flag.votes()]
    mine = [*data, *wishes, *telemetry.recorder.compute_votes(step)]
    telemetry.clock.enter("collective_wait")
    summed = sum_over_ranks(torch.tensor(mine, dtype=torch.int64)).tolist()
    telemetry.clock.enter("other")
    votes = 10 + len(REASONS)
    telemetry.recorder.ranks_computed(step, summed[votes:])
    n_parts, n_valid, n_tokens, data_hash, save, milliseconds, end, snapshot, unsettled, saving = summed[:10]
    reason = agreed_reason(summed[10:votes])
    waits = parts.context.recipe.checkpoint.snapshot_steps != "auto"  # else it comes when nobody has to
    return Agreement(
        n_parts,
        n_valid,
        n_tokens,
        data_hash % 2**64,
        bool(save),
        milliseconds / 1000,
        reason,
        snapshot=bool(snapshot and (waits or not unsettled)),
        unsettled=bool(unsettled),
        saving=bool(saving),
        end=bool(end),
    )


def agree_while_waiting(parts: Parts, done: bool) -> tuple[bool, str | None]:
    """A sign of life, and one all-reduce: is any rank done, and must all stop."""
    clock = parts.telemetry.clock
    clock.beat()
    votes = torch.tensor([int(done), *parts.flag.votes()], dtype=torch.int64)
    with clock.waits():
        n_done, *stops = sum_over_ranks(votes).tolist()
    return bool(n_done), agreed_reason(stops)
