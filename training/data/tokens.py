"""Tokens of chunks on disk as batches: verified reading, samples by step and slot, prefetching.

The whole set is one flat array over all chunks; a sample may straddle two of them and no tail is lost. Labels are
shifted here and nowhere else. Knows no text, no ranks and no model.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

import numpy as np

from model.shards import CorruptError
from training.data.index import (
    DIGESTS,
    ITEM_BYTES,
    ChunkDigest,
    ChunkEntry,
    Digests,
    exists,
    normal,
    read_index,
    read_model,
    vocab_size_of,
)

MAX_OPEN_CHUNKS = 256  # maps; Linux allows a process 65,530 of them
STEPS_AHEAD = 64  # steps whose order is computed at once: numpy's cost is per call
BLOCK_TOKENS = 2**25  # neighbours dealt and shuffled together: the tokens of one chunk of `launch prepare`

Array = np.ndarray[Any, np.dtype[Any]]


class TokenStore:
    """All tokens of a folder of chunks, local or URL, as one flat array.

    Every chunk is checked the first time it is touched (size, header, xxh3 where digests.json has it, ids below
    `vocab_size`); CorruptError names the file. `vocab_size` defaults to what the prepared folder says. `cache` is
    where chunks of a URL are kept.
    """

    def __init__(self, folder: str, *, vocab_size: int | None = None, cache: str | None = None) -> None:
        self.folder = normal(folder)
        index = read_index(self.folder)
        self._chunks: list[ChunkEntry] = index.chunks
        self._compression = index.config.compression
        self.dtype = np.dtype(index.dtype).newbyteorder("<")
        self._starts = np.cumsum([0] + [chunk.dim or 0 for chunk in index.chunks])
        self.n_tokens = int(self._starts[-1])
        self._digests = self._read_digests()
        self.verifiable = self._digests is not None
        self.vocab_size = vocab_size if vocab_size is not None else vocab_size_of(os.path.dirname(self.folder))
        self._cache = cache
        self._verified: set[int] = set()
        self._open: OrderedDict[int, Array] = OrderedDict()

    def _read_digests(self) -> dict[str, ChunkDigest] | None:
        path = f"{self.folder}/{DIGESTS}"
        if not exists(path):
            return None
        digests = read_model(path, Digests).chunks
        if {chunk.filename: chunk.dim for chunk in self._chunks} != {n: chunk.tokens for n, chunk in digests.items()}:
            raise CorruptError(f"{path} and index.json list different chunks")
        return digests

    def read(self, start: int, length: int) -> Array:
        """Tokens start … start + length - 1: (length,) of the stored type; a view where they lie in one chunk."""
        if start < 0 or length < 0 or start + length > self.n_tokens:
            raise IndexError(f"tokens {start} to {start + length} of {self.n_tokens} in {self.folder}")
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts, left = [], length
        while left > 0:
            offset = start - int(self._starts[number])
            part = self.chunk(number)[offset : offset + left]
            parts.append(part)
            start, left, number = start + len(part), left - len(part), number + 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def chunk(self, number: int) -> Array:
        """All tokens of one chunk, memory-mapped and verified."""
        if (found := self._open.get(number)) is not None:
            return found
        entry = self._chunks[number]
        path = self._local(entry)
        try:
            tokens = self._map(path, entry)
        except FileNotFoundError as error:
            raise CorruptError(f"{path} is missing") from error
        if number not in self._verified:
            self._check_ids(path, tokens)
            self._verified.add(number)
        self._open[number] = tokens
        if len(self._open) > MAX_OPEN_CHUNKS:
            self._open.popitem(last=False)
        return tokens

    def _map(self, path: str, entry: ChunkEntry) -> Array:
        header, count = 4 * (entry.chunk_size + 2), entry.dim or 0
        size, expected = os.path.getsize(path), header + count * ITEM_BYTES[self.dtype.name]
        if size != expected:
            raise CorruptError(
                f"{path} has {size} bytes instead of {expected}: it is {'cut' if size < expected else 'too long'}"
            )
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        if path not in self._hashed:
            self._hashed.add(path)
        return raw[header:].view(self.dtype)
