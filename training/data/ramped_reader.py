"""A reader whose global batch grows with the steps: each of its steps is some steps of a reader of smaller batches.

So that a worker holds the same slots of the smaller batches all along, a sequence's slot is, of all in its step, that
of its slot there first. Knows no kind of data and no ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from launchyard.training.batching import sequences_before
from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.cache.prefetch import ChunkUse
from launchyard.training.data.mixture import Ids
from launchyard.training.data.reader import Batch, Reader, signed
from launchyard.training.sections.ramp import steps_to_sum
from launchyard.training.sections.train import TrainConfig


def ramp_unit(train: TrainConfig) -> int:
    """The batch that all of a ramp are multiples of; without one the global batch."""
    return math.gcd(train.global_batch_size, *(size for _, size in train.batch_size_ramp))


class RampedReader:
    """Slots are numbered as of the last, largest batch: of a smaller one they hold fewer sequences in proportion."""

    def __init__(self, reader: Reader, train: TrainConfig) -> None:
        if reader.global_batch_size != ramp_unit(train):
            raise ValueError(
                f"a reader of {reader.global_batch_size} sequences a step; the ramp has {ramp_unit(train)}"
            )
        self._reader = reader
        self._train = train

    @property
    def n_samples(self) -> int:
        return self._reader.n_samples

    @property
    def global_batch_size(self) -> int:
        return self._train.global_batch_size

    @property
    def cache(self) -> ChunkCache | None:
        return self._reader.cache

    def batch(self, step: int, first_slot: int = 0, n: int | None = None) -> Batch:
        size = self.global_batch_size
        n = size - first_slot if n is None else n
        if step < 0 or first_slot < 0 or n < 1 or first_slot + n > size:
            raise IndexError(f"slots {first_slot} to {first_slot + n} of step {step}; a global batch has {size}")
        slots = self._slots(first_slot, n)
        start = self._begin(step)
        return _interleaved([self._reader.batch(number, *slots) for number in range(start, self._begin(step + 1))])

    def plan(self, step: int, first_slot: int, n: int, steps: int) -> tuple[Ids, Ids]:
        """Of one step, whose batch has a size of its own."""
        assert steps == 1, "steps of a ramp have no common size"
        start = self._begin(step)
        sources, samples = self._reader.plan(start, *self._slots(first_slot, n), self._begin(step + 1) - start)
        return sources.T.reshape(1, -1), samples.T.reshape(1, -1)

    def chunks(self, step: int, first_slot: int, n: int, steps: int) -> list[ChunkUse]:
        start = self._begin(step)
        uses = self._reader.chunks(start, *self._slots(first_slot, n), self._begin(step + steps) - start)
        return [ChunkUse(use.store, use.number, self._step_of(use.first), self._step_of(use.last)) for use in uses]

    def _slots(self, first_slot: int, n: int) -> tuple[int, int]:
        """The same share of the smaller batch."""
        whole = self.global_batch_size
        unit = ramp_unit(self._train)
        if first_slot * unit % whole or n * unit % whole:
            raise IndexError(f"slots {first_slot} to {first_slot + n} of {whole} are no whole slots of {unit}")
        return first_slot * unit // whole, n * unit // whole

    def _begin(self, step: int) -> int:
        """The first of the smaller steps that a step is made of."""
        return sequences_before(self._train, step) // ramp_unit(self._train)

    def _step_of(self, smaller: int) -> int:
        """The step that a smaller one is part of."""
        train = self._train
        return steps_to_sum(train.batch_size_ramp, smaller * ramp_unit(train) + 1, train.global_batch_size) - 1


def _interleaved(parts: Sequence[Batch]) -> Batch:
    """Slot by slot: the first slot of each part, then the second."""
    if len(parts) == 1:
        return parts[0]
    documents = None
    if parts[0].documents is not None:
        documents = tuple(one for slot in zip(*(part.documents or () for part in parts), strict=True) for one in slot)
    return Batch(
        inputs=torch.stack([part.inputs for part in parts], dim=1).flatten(0, 1),
        labels=torch.stack([part.labels for part in parts], dim=1).flatten(0, 1),
        n_valid=sum(part.n_valid for part in parts),
        data_hash=signed(sum(part.data_hash for part in parts)),
        documents=documents,
    )
