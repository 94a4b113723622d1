"""Rows as batches: packs by step and slot, each row with positions and labels of its own.

A row of T tokens takes T - 1 positions: labels are shifted inside a row and never across. The packs of epoch after
epoch follow each other; a step takes the next of them, one for each slot. Knows no text and no model.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import xxhash

from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.cache.prefetch import ChunkUse
from launchyard.training.data.mixture import Ids
from launchyard.training.data.packs import Packs, pack_rows
from launchyard.training.data.reader import Batch, chunks_read, signed
from launchyard.training.data.row_store import TRAINED, RowStore
from launchyard.training.data.token_store import ID_BITS
from launchyard.training.spec import IGNORE_INDEX

EPOCHS_KEPT = 3  # the step's own, and those that are fetched ahead
NO_SOURCE = -1  # of slots after the last pack


class RowReader:
    """Packs of rows by step and slot. They depend on nothing but the arguments.

    A sample is a pack of at most `seq_len` positions, without `packing` one row. After `epochs` slots are empty;
    without it epochs go on for ever. The rows of a pack are its documents, see Batch.
    together: so many rows, one after the other, are packed as one, such as the two answers of a pair.
    """

    def __init__(
        self,
        store: RowStore,
        *,
        seq_len: int,
        global_batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        packing: bool = True,
        epochs: float | None = None,
        together: int = 1,
    ) -> None:
        self.store = store
        self.seq_len = seq_len
        self.global_batch_size = global_batch_size
        self._positions = store.lengths - 1
        if len(self._positions) % together:
            raise ValueError(f"{store.folder} has {len(self._positions)} rows, which are no groups of {together}")
        self._together = together
        sums = self._positions.reshape(-1, together).sum(axis=1)
        self._pack = partial(pack_rows, sums, capacity=seq_len, seed=seed, shuffle=shuffle, packing=packing)
        self._lock = threading.Lock()
        self._ends: list[int] = []  # packs up to the end of each epoch
        self._epochs: OrderedDict[int, Packs] = OrderedDict()
        self._sums: tuple[int, Ids] | None = None  # of an epoch, the positions up to the end of each pack
        self.n_samples = len(self.packs(0))  # of one epoch
        self._stop = None if epochs is None else self._count(epochs)

    @property
    def cache(self) -> ChunkCache | None:
        return self.store.cache

    def packs(self, epoch: int) -> Packs:
        """The packs of epoch 0, 1, 2 …, of groups of `together` rows."""
        with self._lock:
            while len(self._ends) < epoch:  # their numbers are needed to tell where this one begins
                self._make(len(self._ends))
            return self._make(epoch)

    def _make(self, epoch: int) -> Packs:
        found = self._epochs.get(epoch)
        if found is None:
            found = self._pack(epoch=epoch)
            self._epochs[epoch] = found
            while len(self._epochs) > EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        if epoch == len(self._ends):
            self._ends.append(len(found) + (self._ends[-1] if self._ends else 0))
        return found

    def _count(self, epochs: float) -> int:
        whole = math.floor(epochs)
        rest = math.ceil((epochs - whole) * len(self.packs(whole))) if epochs > whole else 0
        return sum(len(self.packs(epoch)) for epoch in range(whole)) + rest

    def rows(self, position: int) -> Ids:
        """The rows of the pack at a position of the run: 0, 1, 2 … over all epochs; none after the last."""
        if self._stop is not None and position >= self._stop:
            return np.empty(0, np.int64)
        while not self._ends or position >= self._ends[-1]:
            self.packs(len(self._ends))
        epoch = bisect_right(self._ends, position)
        begin = self._ends[epoch - 1] if epoch else 0
        groups = self.packs(epoch)[position - begin]
        return (groups[:, None] * self._together + np.arange(self._together)).reshape(-1)

    def batch(self, step: int, first_slot: int = 0, n: int | None = None) -> Batch:
        """Slots first_slot … first_slot + n - 1 of a step (0, 1, 2 …); by default all of the global batch."""
        size = self.global_batch_size
        n = size - first_slot if n is None else n
        if step < 0 or first_slot < 0 or n < 1 or first_slot + n > size:
            raise IndexError(f"slots {first_slot} to {first_slot + n} of step {step}; a global batch has {size}")
        start = step * size + first_slot
        return self._batch([self.rows(position) for position in range(start, start + n)])

    def _batch(self, packs: Sequence[Ids]) -> Batch:
        inputs = torch.zeros((len(packs), self.seq_len), dtype=torch.int64)
        labels = torch.full_like(inputs, IGNORE_INDEX)
        documents = []
        total = 0
        for slot, rows in enumerate(packs):
            end = 0
            digest = xxhash.xxh3_64()
            for number in rows.tolist():
                raw = self.store.marked(number)
                ids = (raw & np.uint32(ID_BITS)).astype(np.int64)
                wanted = np.where(raw >= TRAINED, ids, IGNORE_INDEX)
                inputs[slot, end : end + len(ids) - 1] = torch.from_numpy(ids[:-1])
                labels[slot, end : end + len(ids) - 1] = torch.from_numpy(wanted[1:])
                end += len(ids) - 1
                digest.update(np.append(raw, np.uint32(len(raw))).astype("<u4").data)
            documents.append(tuple(self._positions[rows].tolist()))
            total += digest.intdigest() if len(rows) else 0
        n_valid = int((labels != IGNORE_INDEX).sum())
        return Batch(inputs, labels, n_valid, signed(total), tuple(documents))

    def tokens_read(self, steps: int) -> list[int]:
        packs = steps * self.global_batch_size
        packs = packs if self._stop is None else min(packs, self._stop)
        while not self._ends or packs > self._ends[-1]:
            self.packs(len(self._ends))
        epoch = bisect_right(self._ends, packs)
        begun = packs - (self._ends[epoch - 1] if epoch else 0)
        tokens = epoch * int(self._positions.sum())
        return [tokens + (int(self._sums_of(epoch)[begun - 1]) if begun else 0)]

    def _sums_of(self, epoch: int) -> Ids:
        if self._sums is None or self._sums[0] != epoch:
            packs = self.packs(epoch)
            sums = self._positions.reshape(-1, self._together).sum(axis=1)
            self._sums = epoch, np.cumsum(sums[packs.rows])[packs.starts[1:] - 1]
        return self._sums[1]

    def plan(self, step: int, first_slot: int, n: int, steps: int) -> tuple[Ids, Ids]:
        """Of each slot: 0, the number of the source, and the first row of its pack; NO_SOURCE where it is empty."""
        packs = self._planned(step, first_slot, n, steps)
        first = np.array([rows[0] if len(rows) else NO_SOURCE for rows in packs], dtype=np.int64).reshape(steps, n)
        return np.minimum(first, 0), first

    def _planned(self, step: int, first_slot: int, n: int, steps: int) -> list[Ids]:
        starts = [one * self.global_batch_size + first_slot for one in range(step, step + steps)]
        return [self.rows(position) for start in starts for position in range(start, start + n)]

    def chunks(self, step: int, first_slot: int, n: int, steps: int) -> list[ChunkUse]:
        if self.store.cache is None:
            return []
        packs = self._planned(step, first_slot, n, steps)
        rows = np.concatenate(packs)
        if not len(rows):
            return []
        of_slot = np.repeat(np.arange(step, step + steps), n)
        at = np.repeat(of_slot, [len(rows) for rows in packs])
        uses = chunks_read(self.store, self.store.row_starts[rows], at, self._positions[rows])
        return sorted(uses, key=lambda use: use.first)
