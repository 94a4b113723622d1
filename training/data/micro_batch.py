"""The parts of a batch that a model takes at once: documents end to end, without padding, and the places of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from launchyard.model.network.documents import Documents
from launchyard.model.network.transfers import sent
from launchyard.training.batching import Context
from launchyard.training.data.reader import Batch
from launchyard.training.spec import IGNORE_INDEX


@dataclass(frozen=True)
class MicroBatch:
    """Rows that are one document each; or documents end to end in one row, with the labels that count alone."""

    inputs: Tensor  # (B, T) int64, or (1, N)
    labels: Tensor  # (B, T) int64, or (K,)
    documents: Documents | None = None
    at: Tensor | None = None  # (K,) int64: the places of the labels in the row
    first_slot: int = 0  # of the global batch
    tokens: tuple[int, ...] | None = None  # of each slot, where they lie end to end

    def to(self, device: torch.device) -> MicroBatch:
        at = None if self.at is None else sent(self.at, device)
        return replace(self, inputs=sent(self.inputs, device), labels=sent(self.labels, device), at=at)


class Spanning(Protocol):
    def own(self, tokens: Tensor) -> Tensor: ...


def stretch_of(batch: MicroBatch, span: Spanning | None) -> MicroBatch:
    """The tokens of a worker that shares sequences; all without a span. ValueError for documents end to end."""
    if span is None:
        return batch
    if batch.documents is not None:
        raise ValueError("rows of documents cannot be shared by workers; use parallel.cp=1")
    return replace(batch, inputs=span.own(batch.inputs), labels=span.own(batch.labels))


def micro_batches_of(context: Context, batch: Batch, step: int) -> list[MicroBatch]:
    """This worker's part of a step as the model takes it, its sequences cut where a ramp has shorter ones."""
    cuts = context.sequence_cuts(step)
    cut = batch.cut_into(cuts) if cuts > 1 else batch
    size = context.sizes.micro_batch_size * cuts
    return micro_batches(cut, size, context.device, first_slot=context.first_slot(step) * cuts)


def micro_batches(batch: Batch, size: int, device: torch.device, *, first_slot: int = 0) -> list[MicroBatch]:
    """The slots of a batch, `size` at a time, on the device. first_slot: of the batch in the global batch."""
    found = [replace(part, first_slot=first_slot + number * size) for number, part in enumerate(_cut(batch, size))]
    return [part.to(device) for part in found]


def _cut(batch: Batch, size: int) -> list[MicroBatch]:
    inputs = batch.inputs.split(size)
    labels = batch.labels.split(size)
    if batch.documents is None:
        return [MicroBatch(*pair) for pair in zip(inputs, labels, strict=True)]
    documents = [batch.documents[start : start + size] for start in range(0, len(batch.documents), size)]
    return [_end_to_end(*part) for part in zip(inputs, labels, documents, strict=True)]


def _end_to_end(inputs: Tensor, labels: Tensor, documents: Sequence[Sequence[int]]) -> MicroBatch:
    """Rows of documents as one row. Where all rows are empty it has one token: each rank takes part in each step."""
    ends = [sum(lengths) for lengths in documents]
    kept = [row[:end] for row, end in zip(inputs, ends, strict=True)]
    wanted = torch.cat([row[:end] for row, end in zip(labels, ends, strict=True)])
    at = (wanted != IGNORE_INDEX).nonzero()[:, 0]
    row_length = inputs.shape[1]
    if not any(ends):
        padding = Documents((1,), row_length, is_padding=True)
        return MicroBatch(inputs.new_zeros(1, 1), wanted, padding, at, tokens=(1,))
    apart = Documents(tuple(length for lengths in documents for length in lengths), row_length)
    return MicroBatch(torch.cat(kept)[None], wanted[at], apart, at, tokens=tuple(ends))
