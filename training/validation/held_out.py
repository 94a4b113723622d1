"""The loss on held-out data: every sample once, the same number for any number of workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from launchyard.model.network.transfers import device_of_fp64, in_fp64
from launchyard.model.parallel.spans import span_of
from launchyard.training.batching import BatchSizes
from launchyard.training.data.micro_batch import micro_batches, stretch_of
from launchyard.training.data.reader import Batch, Reader
from launchyard.training.distributed import sum_over_ranks
from launchyard.training.objectives.objective import Objective
from launchyard.training.spec import IGNORE_INDEX


@torch.no_grad()
def validation_means(
    model: nn.Module,
    reader: Reader,
    objective: Objective,
    *,
    sizes: BatchSizes,
    data_rank: int,
    device: torch.device,
    max_batches: int | None,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[float] | None:
    """The objective's mean loss over the reader's samples in order, and its figures; None if `interrupted` (asked of
    all ranks) cut it.

    `reader` reads unshuffled; it starts over past the last sample, and repeated samples do not count.
    """
    batches = math.ceil(reader.n_samples / sizes.global_batch_size)
    batches = min(batches, max_batches or batches)
    share = sizes.global_batch_size // sizes.world_size
    # Of the loss, figures and parts.
    sums = torch.zeros(2 + len(objective.figures), dtype=torch.float64, device=device_of_fp64(device))
    span = span_of(model)
    model.eval()
    for number in range(batches):
        if interrupted():
            _leave(model)
            return None
        for micro in range(sizes.grad_accum_steps):
            slot = data_rank * share + micro * sizes.micro_batch_size
            remaining = reader.n_samples - (number * sizes.global_batch_size + slot)
            samples = _first(reader.batch(number, slot, sizes.micro_batch_size), max(0, remaining))
            sums[-1] += objective.parts(samples) if span is None or span.rank == 0 else 0
            (batch,) = micro_batches(samples, sizes.micro_batch_size, device)
            sums[:-1] += in_fp64(objective(model, stretch_of(batch, span), 1.0))
    _leave(model)
    *totals, n_parts = sum_over_ranks(sums).tolist()
    if not n_parts:
        raise ValueError("no token of the validation data that is read has a label; so it has no loss")
    return [total / n_parts for total in totals]


def _first(batch: Batch, n: int) -> Batch:
    """The same without anything in its slots after the first n."""
    if n >= len(batch.labels):
        return batch
    labels = batch.labels.clone()
    labels[n:] = IGNORE_INDEX
    documents = batch.documents
    if documents is not None:
        documents = (*documents[:n], *[()] * (len(documents) - n))
    n_valid = int((labels != IGNORE_INDEX).sum())
    return replace(batch, labels=labels, n_valid=n_valid, documents=documents)


def _leave(model: nn.Module) -> None:
    """Back to training. FSDP's root, and each block with shard_level 2, keeps whole weights for a backward that does
    not come here; they would not see the next update."""
    model.train()
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
