"""Tokens as batches: samples by step and slot, prefetching.

A sample may straddle two chunks and no tail is lost. Labels are shifted here and nowhere else. Knows no text, no
files, no ranks and no model.

To add a kind of data: a class with the interface of Reader, in a file beside this one; its section of the recipe
with its `kind` (training/sections/data.py); its part of a frozen plan (training/spec.py); and the line that opens it in
`open_reader` (open_reader.py). The loop, validation and the prefetcher know only Reader.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
import xxhash

from launchyard.training.batching import count_samples
from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.cache.prefetch import ChunkUse, Fetcher
from launchyard.training.data.chunks import Array
from launchyard.training.data.mixture import Ids, Stages
from launchyard.training.data.order import Order
from launchyard.training.data.token_store import TokenStore
from launchyard.training.spec import IGNORE_INDEX

CLOSE_SECONDS = 10.0
SAMPLES_AHEAD = 8192  # whose order is computed at once: numpy's cost is per call
BLOCK_TOKENS = 2**25  # neighbours dealt and shuffled together: the tokens of one chunk of `launch prepare`


@dataclass(frozen=True)
class Batch:
    """Some slots of a global batch. Labels are IGNORE_INDEX where there is nothing to predict."""

    inputs: torch.Tensor  # (n, T) int64
    labels: torch.Tensor  # (n, T) int64
    n_valid: int  # labels that are not IGNORE_INDEX
    data_hash: int  # signed 64 bits; the sum with wraparound over all slots of a step does not depend on the cut
    documents: tuple[tuple[int, ...], ...] | None = None  # lengths of each slot's documents; None: each is one

    @property
    def n_tokens(self) -> int:
        """Tokens that go through the model, padding apart: of all documents, with a label or without."""
        return self.n_valid if self.documents is None else sum(map(sum, self.documents))

    def cut_into(self, pieces: int) -> Batch:
        """The same tokens and labels, each sequence as so many shorter ones. Not of documents."""
        assert self.documents is None, "documents are not cut"
        inputs, labels = (whole.reshape(len(whole) * pieces, -1) for whole in (self.inputs, self.labels))
        return replace(self, inputs=inputs, labels=labels)


class Reader(Protocol):
    """Batches by step and slot, of any kind of data. The samples of a step depend on its number and nothing else."""

    @property
    def n_samples(self) -> int:
        """Of all its sources; validation reads each once."""
        ...

    @property
    def global_batch_size(self) -> int: ...

    @property
    def cache(self) -> ChunkCache | None:
        """The cache for data from stores; None if all of it is local."""
        ...

    def batch(self, step: int, first_slot: int = 0, n: int | None = None) -> Batch:
        """Slots first_slot … first_slot + n - 1 of a step (0, 1, 2 …); by default all of the global batch."""
        ...

    def plan(self, step: int, first_slot: int, n: int, steps: int) -> tuple[Ids, Ids]:
        """Samples of those slots in `steps` steps: numbers of sources and of samples in them, (steps, n) int64 each."""
        ...

    def chunks(self, step: int, first_slot: int, n: int, steps: int) -> list[ChunkUse]:
        """The chunks that those slots read through a cache, by the step that first reads them."""
        ...

    def tokens_read(self, steps: int) -> list[int]:
        """Tokens of each source, as Batch.n_tokens counts them, in the first `steps` steps of training."""
        ...


class TokenReader:
    """Samples of `seq_len` tokens by step and slot. They depend on nothing but the arguments.

    Sample i of a source holds tokens i·T … i·T + T, the last of them only as a label; its last sample may be short and
    is padded. `weights` mix the sources, each with epochs of its own, by those of `later` from their step on; without
    weights they are read as one, end to end.
    """

    def __init__(
        self,
        stores: Sequence[TokenStore],
        *,
        seq_len: int,
        global_batch_size: int,
        weights: Sequence[float] | None = None,
        later: Stages = (),
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.stores = tuple(stores)
        self.seq_len = seq_len
        counts = [count_samples(store.n_tokens, seq_len) for store in self.stores]
        for store, count in zip(self.stores, counts, strict=True):
            if count < 1:
                raise ValueError(f"{store.folder} has {store.n_tokens} tokens; a sample needs at least 2")
        self.n_samples = sum(counts)
        # Places of a last sample that hold no token.
        self._missing = [n * seq_len - (store.n_tokens - 1) for n, store in zip(counts, self.stores, strict=True)]
        self.order = Order(
            counts,
            global_batch_size,
            weights=weights,
            later=later,
            seed=seed,
            shuffle=shuffle,
            block_samples=max(1, BLOCK_TOKENS // seq_len),
        )
        self._ahead: tuple[tuple[int, int, int], list[int], list[int]] | None = None

    @property
    def global_batch_size(self) -> int:
        return self.order.global_batch_size

    @property
    def cache(self) -> ChunkCache | None:
        """The cache for chunks that are not mapped in their folder."""
        return next((store.cache for store in self.stores if store.cache is not None), None)

    def batch(self, step: int, first_slot: int = 0, n: int | None = None) -> Batch:
        """Slots first_slot … first_slot + n - 1 of a step (0, 1, 2 …); by default all of the global batch."""
        size = self.order.global_batch_size
        n = size - first_slot if n is None else n
        if step < 0 or first_slot < 0 or n < 1 or first_slot + n > size:
            raise IndexError(f"slots {first_slot} to {first_slot + n} of step {step}; a global batch has {size}")
        return self._samples(self.sample_ids(step, first_slot, n))

    def plan(self, step: int, first_slot: int, n: int, steps: int) -> tuple[Ids, Ids]:
        """The samples of those slots in `steps` steps from `step` on: numbers of stores and of samples in them, each
        (steps, n) int64, in the order in which they are read.
        """
        return self.order.split(self.order.slots(step, first=first_slot, n=n, steps=steps))

    def chunks(self, step: int, first_slot: int, n: int, steps: int) -> list[ChunkUse]:
        sources, samples = self.plan(step, first_slot, n, steps)
        at = np.broadcast_to(np.arange(step, step + len(samples))[:, None], samples.shape)
        found: list[ChunkUse] = []
        for source, store in enumerate(self.stores):
            if store.cache is not None:
                of_it = sources == source
                found += chunks_read(store, samples[of_it] * self.seq_len, at[of_it], self.seq_len)
        return sorted(found, key=lambda use: use.first)

    def tokens_read(self, steps: int) -> list[int]:
        samples = self.order.samples_read(steps)
        last = self.order.last_samples_read(steps)
        if len(samples) != len(self.stores):
            raise ValueError("sources that are read end to end are one; only those of a mixture are counted each")
        counted = zip(samples, last, self._missing, strict=True)
        return [n * self.seq_len - visits * missing for n, visits, missing in counted]

    def sample_ids(self, step: int, first_slot: int, n: int) -> list[tuple[int, int]]:
        """The samples of those slots: (number of the store, number of the sample in it) each."""
        steps = max(1, SAMPLES_AHEAD // n)
        key = (step // steps, first_slot, n)
        if self._ahead is None or self._ahead[0] != key:
            sources, samples = self.plan(key[0] * steps, first_slot, n, steps)
            self._ahead = key, sources.ravel().tolist(), samples.ravel().tolist()  # flat: nothing for the collector
        _, sources_ahead, samples_ahead = self._ahead
        own = slice(step % steps * n, (step % steps + 1) * n)
        return list(zip(sources_ahead[own], samples_ahead[own], strict=True))

    def _samples(self, ids: list[tuple[int, int]]) -> Batch:
        length = self.seq_len
        total = 0
        rows = np.empty((len(ids), length + 2), dtype="<i4")  # tokens, the last label, and how many labels count
        lengths = [
            self._fill(row, self.stores[source], sample) for row, (source, sample) in zip(rows, ids, strict=True)
        ]
        for row, valid in zip(rows, lengths, strict=True):
            total += xxhash.xxh3_64_intdigest(row[: valid + 2].data)
        inputs = torch.from_numpy(rows[:, :length].astype(np.int64))
        labels = torch.from_numpy(rows[:, 1 : length + 1].astype(np.int64))
        for number, valid in enumerate(lengths):
            if valid < length:
                inputs[number, valid:] = 0
                labels[number, valid:] = IGNORE_INDEX
        return Batch(inputs, labels, sum(lengths), signed(total))

    def _fill(self, row: Array, store: TokenStore, sample: int) -> int:
        """Write a sample and its number of labels into a row (T + 2,); returns that number."""
        start = sample * self.seq_len
        valid = min(self.seq_len, store.n_tokens - 1 - start)
        row[: valid + 1] = store.read(start, valid + 1)
        row[valid + 1] = valid
        return valid


def signed(total: int) -> int:
    """A sum of 64-bit hashes with wraparound, as signed 64 bits."""
    return (total + 2**63) % 2**64 - 2**63


def chunks_read(store: TokenStore, starts: Ids, steps: Ids, lengths: int | Ids) -> list[ChunkUse]:
    """The chunks that hold tokens start … start + length of samples, each with the first and the last of `steps`."""
    bounds = np.asarray(store.starts[1:-1])
    first = np.searchsorted(bounds, starts, side="right")
    last = np.searchsorted(bounds, np.minimum(starts + lengths, store.n_tokens - 1), side="right")
    spread = range(int((last - first).max(initial=0)) + 1)
    number = np.concatenate([np.minimum(first + further, last) for further in spread])
    at = np.concatenate([steps for _ in spread])
    order = np.lexsort((at, number))
    number = number[order]
    at = at[order]
    chunks, begins = np.unique(number, return_index=True)
    ends = np.append(begins[1:], len(number)) - 1
    found = zip(chunks.tolist(), at[begins].tolist(), at[ends].tolist(), strict=True)
    uses = [ChunkUse(store, number, first, last) for number, first, last in found]
    return [use for use in uses if store.chunks[use.number].tokens]  # an empty one may lie between


class Prefetcher:
    """Yields (step, Batch) of the same slots from `start_step` on, read by one thread `depth` steps ahead.

    Chunks of a store are fetched to the local cache further ahead, see training/data/cache/prefetch.py. An error
    of the thread is raised where the consumer waits. Close it, or use it as a context.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        start_step: int = 0,
        stop_step: int | None = None,
        first_slot: int = 0,
        n: int | None = None,
        depth: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self._reader = reader
        self._slots = (first_slot, n)
        self._pin = pin_memory
        self._queue: queue.Queue[tuple[int, Batch] | BaseException | None] = queue.Queue(maxsize=depth)
        self._received: list[tuple[int, Batch] | BaseException | None] = []  # out of the queue, and not given yet
        self._closed = threading.Event()
        self._fetcher: Fetcher | None = None
        if reader.cache is not None:
            share = reader.global_batch_size - first_slot if n is None else n
            self._fetcher = Fetcher(reader, start_step=start_step, stop_step=stop_step, first_slot=first_slot, n=share)
        self._thread = threading.Thread(
            target=self._run, args=(start_step, stop_step), name="prefetch-tokens", daemon=True
        )
        self._thread.start()

    def _run(self, step: int, stop: int | None) -> None:
        try:
            while not self._closed.is_set() and (stop is None or step < stop):
                if self._fetcher is not None:
                    self._fetcher.at(step)
                batch = self._reader.batch(step, *self._slots)
                self._enqueue((step, _pinned(batch) if self._pin else batch))
                step += 1
            self._enqueue(None)
        except BaseException as error:
            self._enqueue(error)

    def _enqueue(self, item: tuple[int, Batch] | BaseException | None) -> None:
        """Wait for a free slot, but never after `close`."""
        while not self._closed.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
        return None

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        return self

    def ready(self, seconds: float) -> bool:
        """Wait so long for the next item. Returns True if it is there, and `next` will not wait."""
        if not self._received:
            with contextlib.suppress(queue.Empty):
                self._received.append(self._queue.get(timeout=seconds))
        return bool(self._received)

    def __next__(self) -> tuple[int, Batch]:
        if self._closed.is_set():
            raise StopIteration
        item = self._received.pop() if self._received else self._queue.get()
        if isinstance(item, tuple):
            return item
        self.close()
        if item is None:
            raise StopIteration
        raise item

    def close(self) -> None:
        """Stop reading and wait for the thread; not for a store that does not answer."""
        self._closed.set()
        if self._fetcher is not None:
            self._fetcher.close()
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_SECONDS)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pinned(batch: Batch) -> Batch:
    return replace(batch, inputs=batch.inputs.pin_memory(), labels=batch.labels.pin_memory())
