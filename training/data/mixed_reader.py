"""Readers made of readers: several as one, mixed by weights or end to end; one whose batch grows with the steps; and
one that reads its first batches again and again.

Knows no kind of data and no ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from launchyard.training.batching import ramp_unit, sequences_before
from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.cache.prefetch import ChunkUse
from launchyard.training.data.mixture import Ids, StagedMixture, Stages
from launchyard.training.data.order import stages_of
from launchyard.training.data.reader import Batch, Reader, signed
from launchyard.training.sections.ramp import steps_to_sum
from launchyard.training.sections.train import TrainConfig
from launchyard.training.spec import IGNORE_INDEX


class MixedReader:
    """One sample of one of `readers` in each slot; they have a global batch of one sample each, and one source.

    With `weights` each position takes the next sample of one of them, by those of `later` from their step on; without,
    all of the first, then all of the second … and again from the first. A sample without documents is one document.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        *,
        global_batch_size: int,
        weights: Sequence[float] | None,
        later: Stages = (),
        seed: int = 0,
    ) -> None:
        if any(reader.global_batch_size != 1 for reader in readers):
            raise ValueError("a reader in a mixture has a global batch of one sample")
        self.readers = tuple(readers)
        self.global_batch_size = global_batch_size
        self.n_samples = sum(reader.n_samples for reader in readers)
        self._mixture: StagedMixture | None = None
        if weights is not None:
            stages = stages_of(weights, later, samples=global_batch_size)
            self._mixture = StagedMixture(stages, seed=seed, n_streams=1)
        self._starts = np.cumsum([0, *(reader.n_samples for reader in readers)])

    @property
    def cache(self) -> ChunkCache | None:
        return next((reader.cache for reader in self.readers if reader.cache is not None), None)

    def _ranks(self, positions: Ids) -> tuple[Ids, Ids]:
        """The reader of each position of the run, and how many positions before it that reader had."""
        if self._mixture is not None:
            return self._mixture.at(np.zeros_like(positions), positions)
        turn, offset = np.divmod(positions, self.n_samples)
        source: Ids = np.searchsorted(self._starts, offset, side="right") - 1
        sizes = np.diff(self._starts)
        return source, turn * sizes[source] + offset - self._starts[source]

    def batch(self, step: int, first_slot: int = 0, n: int | None = None) -> Batch:
        """Slots first_slot … first_slot + n - 1 of a step (0, 1, 2 …); by default all of the global batch."""
        size = self.global_batch_size
        n = size - first_slot if n is None else n
        if step < 0 or first_slot < 0 or n < 1 or first_slot + n > size:
            raise IndexError(f"slots {first_slot} to {first_slot + n} of step {step}; a global batch has {size}")
        sources, ranks = self._ranks(step * size + first_slot + np.arange(n))
        pairs = zip(sources.tolist(), ranks.tolist(), strict=True)
        return _joined([self.readers[source].batch(rank) for source, rank in pairs])

    def plan(self, step: int, first_slot: int, n: int, steps: int) -> tuple[Ids, Ids]:
        sources, ranks = self._ranks(self._positions(step, first_slot, n, steps))
        samples = np.empty_like(ranks)
        for number, reader in enumerate(self.readers):
            of_it = sources == number
            if of_it.any():
                low = int(ranks[of_it].min())
                _, own = reader.plan(low, 0, 1, int(ranks[of_it].max()) - low + 1)
                samples[of_it] = own[ranks[of_it] - low, 0]
        return sources, samples

    def chunks(self, step: int, first_slot: int, n: int, steps: int) -> list[ChunkUse]:
        positions = self._positions(step, first_slot, n, steps)
        sources, ranks = self._ranks(positions)
        found: list[ChunkUse] = []
        for number, reader in enumerate(self.readers):
            if reader.cache is not None and (sources == number).any():
                found += self._uses(reader, ranks[sources == number], positions[sources == number])
        return sorted(found, key=lambda use: use.first)

    def _uses(self, reader: Reader, ranks: Ids, positions: Ids) -> list[ChunkUse]:
        """Chunks of one reader's samples, by the steps of the mixture that read them."""
        order = np.argsort(ranks)
        ranks = ranks[order]
        steps = positions[order] // self.global_batch_size
        low = int(ranks[0])
        uses = reader.chunks(low, 0, 1, int(ranks[-1]) - low + 1)
        first = [int(steps[int(np.searchsorted(ranks, use.first))]) for use in uses]
        last = [int(steps[int(np.searchsorted(ranks, use.last, side="right")) - 1]) for use in uses]
        return [ChunkUse(use.store, use.number, *when) for use, *when in zip(uses, first, last, strict=True)]

    def tokens_read(self, steps: int) -> list[int]:
        if self._mixture is None:
            raise ValueError("sources that are read end to end are one; only those of a mixture are counted each")
        ranks = self._mixture.before(steps * self.global_batch_size)[:, 0].tolist()
        return [reader.tokens_read(rank)[0] for reader, rank in zip(self.readers, ranks, strict=True)]

    def _positions(self, step: int, first_slot: int, n: int, steps: int) -> Ids:
        return (step + np.arange(steps))[:, None] * self.global_batch_size + first_slot + np.arange(n)


class RampedReader:
    """A global batch that grows with the steps: each step is some steps of a reader of smaller batches.

    Slots are numbered as of the last, largest batch: of a smaller one they hold fewer sequences in proportion. So that
    a worker holds the same slots of `reader` all along, the sequences of a step go by their slot there first.
    """

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

    def tokens_read(self, steps: int) -> list[int]:
        return self._reader.tokens_read(self._begin(steps))

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


class LoopedReader:
    """The first `n_batches` steps of a reader, again and again in their order."""

    def __init__(self, reader: Reader, n_batches: int) -> None:
        if n_batches < 1:
            raise ValueError(f"{n_batches} batches to read again and again; at least 1 is needed")
        self._reader = reader
        self._n_batches = n_batches

    @property
    def n_samples(self) -> int:
        return self._reader.n_samples

    @property
    def global_batch_size(self) -> int:
        return self._reader.global_batch_size

    @property
    def cache(self) -> ChunkCache | None:
        return self._reader.cache

    def batch(self, step: int, first_slot: int = 0, n: int | None = None) -> Batch:
        if step < 0:
            raise IndexError(f"there is no step {step}")
        return self._reader.batch(step % self._n_batches, first_slot, n)

    def plan(self, step: int, first_slot: int, n: int, steps: int) -> tuple[Ids, Ids]:
        each = [self._reader.plan(at % self._n_batches, first_slot, n, 1) for at in range(step, step + steps)]
        return np.concatenate([sources for sources, _ in each]), np.concatenate([samples for _, samples in each])

    def chunks(self, step: int, first_slot: int, n: int, steps: int) -> list[ChunkUse]:
        found: dict[tuple[int, int], ChunkUse] = {}
        for at in range(step, step + steps):
            for use in self._reader.chunks(at % self._n_batches, first_slot, n, 1):
                first = found.get((id(use.store), use.number), replace(use, first=at)).first
                found[id(use.store), use.number] = replace(use, first=first, last=at)
        return sorted(found.values(), key=lambda use: use.first)

    def tokens_read(self, steps: int) -> list[int]:
        turns, rest = divmod(steps, self._n_batches)
        once = self._reader.tokens_read(self._n_batches)
        return [turns * whole + part for whole, part in zip(once, self._reader.tokens_read(rest), strict=True)]


def _joined(samples: Sequence[Batch]) -> Batch:
    documents = tuple(one for sample in samples for one in _documents(sample))
    return Batch(
        inputs=torch.cat([sample.inputs for sample in samples]),
        labels=torch.cat([sample.labels for sample in samples]),
        n_valid=sum(sample.n_valid for sample in samples),
        data_hash=signed(sum(sample.data_hash for sample in samples)),
        documents=documents,
    )


def _documents(sample: Batch) -> tuple[tuple[int, ...], ...]:
    if sample.documents is not None:
        return sample.documents
    return tuple((int((labels != IGNORE_INDEX).sum()),) for labels in sample.labels)


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
