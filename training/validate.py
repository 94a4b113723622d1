"""The loss on held-out data: every sample once, the same number for any number of workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from launchyard.model.network.transformer import Projection
from launchyard.training.batching import BatchSizes
from launchyard.training.data.micro_batch import micro_batches
from launchyard.training.data.reader import Reader
from launchyard.training.distributed import World, sum_over_ranks
from launchyard.training.loss import linear_cross_entropy
from launchyard.training.spec import IGNORE_INDEX


@torch.no_grad()
def validation_loss(
    model: nn.Module,
    reader: Reader,
    *,
    sizes: BatchSizes,
    world: World,
    device: torch.device,
    max_batches: int | None,
    interrupted: Callable[[], bool] = lambda: False,
) -> float | None:
    """Mean loss, nats per token, over the reader's samples in order; None if `interrupted` (asked of all ranks) cut it.

    `reader` reads unshuffled; it starts over past the last sample, and repeated samples do not count.
    """
    batches = math.ceil(reader.n_samples / sizes.global_batch_size)
    batches = min(batches, max_batches or batches)
    share = sizes.global_batch_size // sizes.world_size
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss, tokens
    model.eval()
    for number in range(batches):
        if interrupted():
            _leave(model)
            return None
        for micro in range(sizes.grad_accum_steps):
            slot = world.rank * share + micro * sizes.micro_batch_size
            samples = reader.batch(number, slot, sizes.micro_batch_size)
            labels = samples.labels
            remaining = reader.n_samples - (number * sizes.global_batch_size + slot)
            labels[max(0, remaining) :] = IGNORE_INDEX
            sums[1] += int((labels != IGNORE_INDEX).sum())
            (batch,) = micro_batches(samples, sizes.micro_batch_size, device)
            head = partial(_summed, labels=batch.labels)
            sums[0] += model(batch.inputs, head=head, documents=batch.documents, at=batch.at).double()
    _leave(model)
    total, tokens = sum_over_ranks(sums).tolist()
    if not tokens:
        raise ValueError("no token of the validation data that is read has a label; so it has no loss")
    return float(total / tokens)


def _leave(model: nn.Module) -> None:
    """Back to training. FSDP's root keeps whole weights for a backward that does not come here."""
    model.train()
    if hasattr(model, "reshard"):
        model.reshard()


def _summed(hidden: torch.Tensor, head: Projection, *, labels: torch.Tensor) -> torch.Tensor:
    return linear_cross_entropy(hidden, head.weight, labels, bias=head.bias, softcap=head.softcap)
