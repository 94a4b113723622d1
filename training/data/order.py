"""The samples that a step reads: a pure function of a few numbers and the step, O(1), without lists over the data.

The global batch is made of K canonical streams, K a divisor of its size. Blocks of consecutive samples are dealt to
the streams by a keyed permutation, for ever; so a machine that always holds the same slots reads only its own share
of the data. Inside a stream each epoch visits every sample once: windows of neighbours in a permuted order, permuted
inside, so that reading is nearly sequential. In a mixture every source has such an order of its own, and each position
of a stream takes the next sample of one source. The number of workers that share the batch never enters.
Knows no tokens and no files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from launchyard.training.data.mixture import Ids, StagedMixture, Stages

MAX_STREAMS = 64
SAMPLES_PER_STREAM = 64  # fewer would make the epochs of streams too short to be worth separating
SAMPLES_PER_TURN = 8  # streams come to a source of a mixture up to 6 turns apart: within one epoch of it, then
BLOCKS_PER_STREAM = 16
ROUNDS = 8
SEED_STRIDE = 0x9E3779B97F4A7C15  # between the seeds of sources; the first has the seed as given
Words = np.ndarray[Any, np.dtype[np.uint64]]


class Order:
    """The order of the samples of one source or several.

    Samples are numbered through all sources: those of the first from 0 on, then those of the second … `weights`
    (positive, of any sum) are frequencies of the sources, each with its own epochs; without them the sources are one,
    end to end. `later`: steps, rising, and the weights from there on. Without `shuffle` each is read as it lies.
    `block_samples` bounds the neighbours that are dealt and shuffled together.
    """

    def __init__(
        self,
        n_samples: Sequence[int],
        global_batch_size: int,
        *,
        weights: Sequence[float] | None = None,
        later: Stages = (),
        seed: int = 0,
        shuffle: bool = True,
        block_samples: int = 16384,
    ) -> None:
        positive = {"n_samples": min(n_samples, default=0), "global_batch_size": global_batch_size}
        for name, value in {**positive, "block_samples": block_samples}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; the order of samples needs at least 1")
        if weights is not None and len(weights) != len(n_samples):
            raise ValueError(f"{len(weights)} weights for {len(n_samples)} sources")
        self.n_samples = tuple(n_samples)
        self.global_batch_size = global_batch_size
        sizes = [sum(n_samples)] if weights is None else list(n_samples)
        most = [_most_streams(size) if shuffle else 1 for size in sizes]
        self.n_streams = _divisor(global_batch_size, max(1, min(max(most), min(sizes) // SAMPLES_PER_TURN)))
        self._starts = np.cumsum([0, *n_samples])
        self._sources = [
            _Source(size, _divisor(self.n_streams, own), (seed + number * SEED_STRIDE) % 2**64, shuffle, block_samples)
            for number, (size, own) in enumerate(zip(sizes, most, strict=True))
        ]
        self._mixture: StagedMixture | None = None
        if weights is not None and len(weights) > 1:
            mixture_seed = int(_key(seed, 5)[0] % np.uint64(2**32)) if shuffle else 0
            stages = stages_of(weights, later, samples=global_batch_size // self.n_streams)
            self._mixture = StagedMixture(stages, seed=mixture_seed, n_streams=self.n_streams)

    def sample_ids(self, step: int) -> Ids:
        """The samples of step 0, 1, 2 …, one a slot of the global batch: (global_batch_size,) int64."""
        ids: Ids = self.slots(step, first=0, n=self.global_batch_size)[0]
        return ids

    def slots(self, step: int, *, first: int, n: int, steps: int = 1) -> Ids:
        """The samples of slots first … first + n - 1 in `steps` steps from `step` on: (steps, n) int64."""
        slot = np.arange(first, first + n, dtype=np.int64)[None, :]
        at = np.arange(step, step + steps, dtype=np.int64)[:, None]
        width = self.global_batch_size // self.n_streams  # slots of one stream
        stream = slot // width + 0 * at
        position = at * width + slot % width
        if self._mixture is None:
            return self._read(0, stream, position)
        ids = np.empty_like(position)
        source, rank = self._mixture.at(stream, position)
        for number in range(len(self._sources)):
            of_it = source == number
            ids[of_it] = self._read(number, stream[of_it], rank[of_it])
        return ids

    def samples_read(self, steps: int) -> list[int]:
        """The samples of each source in the first `steps` steps; of those that are read end to end in all."""
        return [int(counts.sum()) for counts in self._ranks(steps)]

    def last_samples_read(self, steps: int) -> list[int]:
        """How often the last sample of each source was read in the first `steps` steps."""
        return [self._visits(number, ranks) for number, ranks in enumerate(self._ranks(steps))]

    def _ranks(self, steps: int) -> Ids:
        """The samples that each stream has taken from each source: (sources, streams)."""
        position = steps * (self.global_batch_size // self.n_streams)
        if self._mixture is None:
            return np.full((1, self.n_streams), position, np.int64)
        return self._mixture.before(position)

    def _visits(self, number: int, ranks: Ids) -> int:
        """How often a source's last sample was read, when each canonical stream has taken `ranks` samples of it.

        Its epochs before the slowest of the streams that share it are over; those after are looked at one by one.
        """
        source = self._sources[number]
        stream, size = source.stream_of_last()
        share = self.n_streams // source.n_streams
        own = ranks[stream * share : (stream + 1) * share]
        epochs = int(own.min()) * share // size
        visits = epochs
        while epochs * size < int(own.max()) * share:
            position = epochs * size + source.place_of_last(epochs)
            visits += int(position // share < own[position % share])
            epochs += 1
        return visits

    def split(self, ids: Ids) -> tuple[Ids, Ids]:
        """Number of the source of each sample, and of the sample in that source."""
        if len(self.n_samples) == 1:
            return np.zeros_like(ids), ids
        source: Ids = np.searchsorted(self._starts, ids, side="right") - 1
        return source, ids - self._starts[source]

    def _read(self, number: int, stream: Ids, rank: Ids) -> Ids:
        """The `rank`-th sample that a stream takes from a source.

        A small source has fewer streams of its own: neighbours among the canonical ones then share one, by turns.
        """
        source = self._sources[number]
        share = self.n_streams // source.n_streams
        ids: Ids = self._starts[number] + source.at(stream // share, rank * share + stream % share)
        return ids


def stages_of(weights: Sequence[float], later: Stages, *, samples: int) -> Stages:
    """The stages of a mixture by position, where each step takes so many samples of a stream."""
    stages = [(0, weights), *((step * samples, changed) for step, changed in later)]
    return stages[1:] if len(stages) > 1 and stages[1][0] == 0 else stages


def _most_streams(n_samples: int) -> int:
    return max(1, min(MAX_STREAMS, n_samples // SAMPLES_PER_STREAM))


def _divisor(number: int, most: int) -> int:
    return max(k for k in range(1, most + 1) if number % k == 0)


@dataclass(frozen=True)
class _Source:
    """The order of one source, in streams."""

    n_samples: int
    n_streams: int
    seed: int
    shuffle: bool
    block_samples: int

    def at(self, stream: Ids, position: Ids) -> Ids:
        """The sample that each stream reads as its `position`-th."""
        if not self.shuffle:
            return position % self.n_samples
        start = stream * self.n_samples // self.n_streams
        size = (stream + 1) * self.n_samples // self.n_streams - start
        epoch = position // size
        index = position % size
        inside = _within_epoch(index, size, window=self.block_samples, key=_key(self.seed, 1, epoch, stream))
        return self._dealt(start + inside)

    def stream_of_last(self) -> tuple[int, int]:
        """The stream that reads the last sample, and the samples of that stream."""
        place = self._canonical_last()
        stream = ((place + 1) * self.n_streams - 1) // self.n_samples
        start = stream * self.n_samples // self.n_streams
        return stream, (stream + 1) * self.n_samples // self.n_streams - start

    def place_of_last(self, epoch: int) -> int:
        """The position of the last sample in an epoch of its stream."""
        if not self.shuffle:
            return self.n_samples - 1
        stream, size = self.stream_of_last()
        inside = self._canonical_last() - stream * self.n_samples // self.n_streams
        key = _key(self.seed, 1, np.array([epoch]), np.array([stream]))
        windows = size // self.block_samples
        which = inside // self.block_samples
        at_window = which if which >= windows else int(unpermute(np.array([which]), windows, _fold(key, 3))[0])
        length = size - windows * self.block_samples if which >= windows else self.block_samples
        offset = unpermute(np.array([inside % self.block_samples]), length, _fold(_fold(key, 4), which))
        return at_window * self.block_samples + int(offset[0])

    def _canonical_last(self) -> int:
        """The place of the last sample in the order in which blocks were dealt."""
        last = self.n_samples - 1
        block, blocks = self._blocks()
        if not self.shuffle or last >= blocks * block:
            return last
        dealt = unpermute(np.array([last // block]), blocks, _key(self.seed, 2))
        return int(dealt[0]) * block + last % block

    def _blocks(self) -> tuple[int, int]:
        """The samples of a block, and how many are full."""
        block = max(1, min(self.block_samples, self.n_samples // (self.n_streams * BLOCKS_PER_STREAM)))
        return block, self.n_samples // block

    def _dealt(self, canonical: Ids) -> Ids:
        """The sample at a place of the order in which blocks were dealt. A last, shorter block stays where it is."""
        block, blocks = self._blocks()
        in_full_block = canonical < blocks * block
        source = np.where(in_full_block, canonical // block, 0)
        dealt = permute(source, np.full_like(source, blocks), _key(self.seed, 2))
        return np.where(in_full_block, dealt * block + canonical % block, canonical)


def _within_epoch(index: Ids, size: Ids, *, window: int, key: Words) -> Ids:
    """A permutation of 0 … size - 1: whole windows in permuted order, then the odd rest, each permuted inside."""
    windows = size // window
    which = index // window
    in_tail = which >= windows
    order = permute(np.where(in_tail, 0, which), np.maximum(windows, 1), _fold(key, 3))
    which = np.where(in_tail, which, order)
    length = np.where(in_tail, size - windows * window, window)
    return which * window + permute(index % window, length, _fold(_fold(key, 4), which))


def permute(index: Ids, size: Ids, key: Words) -> Ids:
    """A keyed permutation of 0 … size - 1, element by element; arrays broadcast, `index` < `size`.

    A Feistel network over a grid of a × b >= size places (Black & Rogaway 2002, "Ciphers with arbitrary finite
    domains"): walking on from places outside needs few turns, as a · b - size < a + b.
    """
    return _walk(_feistel, index, size, key)


def unpermute(value: Ids, size: Ids | int, key: Words) -> Ids:
    """The index that `permute` puts at a value."""
    return _walk(_feistel_back, value, np.asarray(size), key)


def _walk(network: Callable[[Words, Words, Words, Words], Words], index: Ids, size: Ids, key: Words) -> Ids:
    index, size, key = np.broadcast_arrays(index, size, key)
    shape = index.shape
    position = index.ravel().astype(np.uint64)
    limit = size.ravel().astype(np.uint64)
    key = key.ravel()
    rows = np.sqrt(limit.astype(np.float64)).astype(np.uint64) + np.uint64(1)
    columns = (limit + rows - np.uint64(1)) // rows
    result = network(position, rows, columns, key)
    while (outside := result >= limit).any():
        result[outside] = network(result[outside], rows[outside], columns[outside], key[outside])
    return result.astype(np.int64).reshape(shape)


def permutation(size: int, seed: int, *parts: int) -> Ids:
    """The numbers 0 … size - 1 in an order that depends on seed and parts alone, whatever the version of numpy."""
    return permute(np.arange(size), np.full(size, size), _key(seed, *parts)) if size else np.empty(0, np.int64)


def _feistel(position: Words, rows: Words, columns: Words, key: Words) -> Words:
    left = position // columns  # < rows
    right = position % columns  # < columns
    for turn in range(0, ROUNDS, 2):
        left = (left + _mix(right + _fold(key, turn)) % rows) % rows
        right = (right + _mix(left + _fold(key, turn + 1)) % columns) % columns
    return left * columns + right


def _feistel_back(position: Words, rows: Words, columns: Words, key: Words) -> Words:
    """The inverse: the same turns in the other order, each taken away."""
    left = position // columns
    right = position % columns
    for turn in reversed(range(0, ROUNDS, 2)):
        right = (right + columns - _mix(left + _fold(key, turn + 1)) % columns) % columns
        left = (left + rows - _mix(right + _fold(key, turn)) % rows) % rows
    return left * columns + right


def _key(seed: int, *parts: int | Ids) -> Words:
    key = _mix(np.asarray(seed % 2**64, dtype=np.uint64).reshape(1))
    for part in parts:
        key = _fold(key, part)
    return key


def _fold(key: Words, part: int | Ids) -> Words:
    """A new key from a key and a number."""
    odd = np.uint64(0x9E3779B97F4A7C15)
    return _mix(key + odd * (np.atleast_1d(part).astype(np.uint64) + np.uint64(1)))


def _mix(word: Words) -> Words:
    """The finaliser of splitmix64 (Steele et al. 2014): every bit of the input moves every bit of the result."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
