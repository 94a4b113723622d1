"""The loss on held-out data: every sample once, the same number for any number of workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from training.config import Batch
from training.data.tokens import TokenReader
from training.distributed import World, sum_over_ranks
from training.loss import linear_cross_entropy


@torch.no_grad()
def validate(
    model: nn.Module,
    reader: TokenReader,
    *,
    batch: Batch,
    world: World,
    device: torch.device,
    max_batches: int | None,
    interrupted: Callable[[], bool] = lambda: False,
) -> float | None:
    """Mean loss in nats a token over the reader's samples, in order; None if `interrupted` (asked of all ranks) cut it.

    `reader` reads unshuffled and `once`: slots past the last sample are empty.
    """
    batches = min(reader.n_steps, max_batches or reader.n_steps)
    share = batch.global_batch_size // batch.world_size
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss, tokens
    model.eval()
    for number in range(batches):
        if interrupted():
            model.train()
            return None
        for micro in range(batch.grad_accum_steps):
            slot = world.rank * share + micro * batch.micro_batch_size
            samples = reader.batch(number, slot, batch.micro_batch_size)
            sums[1] += samples.n_valid
            head = partial(_summed, labels=samples.labels.to(device))
            sums[0] += model(samples.inputs.to(device), head=head).double()
    model.train()
    total, tokens = sum_over_ranks(sums).tolist()
    return float(total / max(1.0, tokens))


def _summed(hidden: torch.Tensor, weight: torch.Tensor, *, labels: torch.Tensor) -> torch.Tensor:
    return linear_cross_entropy(hidden, weight, labels)
