"""The loss on held-out data: every sample once, the same number for any number of workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from training.config import IGNORE_INDEX, Batch
from training.distributed import World, sum_over_ranks
from training.loss import linear_cross_entropy


@torch.no_grad()
def validate(
    model: nn.Module,
    reader: Any,
    *,
    batch: Batch,
    world: World,
    device: torch.device,
    max_batches: int | None,
    interrupted: Callable[[], bool] = lambda: False,
) -> float | None:
    """Mean loss in nats a token over the reader's samples, in order; None if `interrupted` (asked of all ranks) cut it.

    `reader` reads unshuffled; sample numbers beyond the last are padding and count nothing.
    """
    batches = math.ceil(reader.n_samples / batch.global_batch_size)
    share = batch.global_batch_size // batch.world_size
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss, tokens
    model.eval()
    for number in range(min(batches, max_batches or batches)):
        if interrupted():
            model.train()
            return None
        for micro in range(batch.grad_accum_steps):
            slot = world.rank * share + micro * batch.micro_batch_size
            samples = reader.batch(number, slot, batch.micro_batch_size)
            beyond = reader.n_samples - (number * batch.global_batch_size + slot)
            labels = samples.labels
            if beyond < len(labels):
                labels = labels.clone()
                labels[max(0, beyond) :] = IGNORE_INDEX
            sums[1] += int((labels != IGNORE_INDEX).sum())
            head = partial(_summed, labels=labels.to(device))
            sums[0] += model(samples.inputs.to(device), head=head).double()
    model.train()
    total, tokens = sum_over_ranks(sums).tolist()
    return float(total / max(1.0, tokens))


def _summed(hidden: torch.Tensor, weight: torch.Tensor, *, labels: torch.Tensor) -> torch.Tensor:
    return linear_cross_entropy(hidden, weight, labels)
