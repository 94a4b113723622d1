"""All tokens of a folder of chunks as one flat array: which chunk a token is in, and that chunk checked and mapped.

Knows no text, no samples and no order.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate

import numpy as np

from model.files import exists, normal
from model.shards import CorruptError
from training.data.chunks import Array, fetch_chunk, open_chunk
from training.data.index import DIGESTS, ChunkDigest, Digests, read_index, read_model, vocab_size_of

MAX_OPEN_CHUNKS = 256  # maps; Linux allows a process 65,530 of them
MAX_VOCAB_SIZE = 2**31 - 1  # ids are hashed as int32


class TokenStore:
    """All tokens of a folder of chunks, local or URL, as one flat array.

    A chunk is checked the first time it is touched (size, header, xxh3 where digests.json has it, ids below
    `vocab_size`); CorruptError names the file. `vocab_size` defaults to what the prepared folder says. `cache` is
    the local folder for chunks of a URL.
    """

    def __init__(self, folder: str, *, vocab_size: int | None = None, cache: str | None = None) -> None:
        self.folder, self.cache = normal(folder), cache
        index = read_index(self.folder)
        self.chunks, self._compression = index.chunks, index.config.compression
        self.dtype = np.dtype(index.dtype).newbyteorder("<")
        self._starts = list(accumulate((chunk.dim or 0 for chunk in index.chunks), initial=0))
        self.n_tokens = self._starts[-1]
        self._digests = self._read_digests()
        self.verifiable = self._digests is not None
        self.vocab_size = vocab_size if vocab_size is not None else vocab_size_of(os.path.dirname(self.folder))
        self._verified: set[int] = set()
        self._open: OrderedDict[int, Array] = OrderedDict()

    def _read_digests(self) -> dict[str, ChunkDigest] | None:
        path = f"{self.folder}/{DIGESTS}"
        if not exists(path):
            return None
        digests = read_model(path, Digests).chunks
        if {chunk.filename: chunk.dim for chunk in self.chunks} != {n: chunk.tokens for n, chunk in digests.items()}:
            raise CorruptError(f"{path} and the index.json beside it list different chunks")
        return digests

    def read(self, start: int, length: int) -> Array:
        """Tokens start … start + length - 1: (length,) of the stored type; a view where they lie in one chunk."""
        if start < 0 or length < 0 or start + length > self.n_tokens:
            raise IndexError(f"tokens {start} to {start + length} of {self.n_tokens} in {self.folder}")
        number = bisect_right(self._starts, start) - 1
        if length and start + length <= self._starts[number + 1]:
            offset = start - self._starts[number]
            return self.chunk(number)[offset : offset + length]
        parts: list[Array] = []
        while length > 0:
            offset = start - self._starts[number]
            part = self.chunk(number)[offset : offset + length]
            parts.append(part)
            start, length, number = start + len(part), length - len(part), number + 1
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def chunk(self, number: int) -> Array:
        """All tokens of one chunk, memory-mapped and checked."""
        found = self._open.get(number)
        if found is None:
            found = self._open[number] = self._first_touch(number)
            if len(self._open) > MAX_OPEN_CHUNKS:
                self._open.popitem(last=False)
        return found

    def _first_touch(self, number: int) -> Array:
        entry = self.chunks[number]
        expected = None if self._digests is None else self._digests[entry.filename]
        path = f"{self.folder}/{entry.filename}"
        if "://" in path or self._compression:
            path = fetch_chunk(path, cache=self._cache_folder(), compression=self._compression, expected=expected)
        known = number in self._verified  # opened again after MAX_OPEN_CHUNKS others
        tokens = open_chunk(path, entry, self.dtype, None if known else expected)
        if not known:
            self._check_ids(path, tokens)
            self._verified.add(number)
        return tokens

    def _check_ids(self, path: str, tokens: Array) -> None:
        if not len(tokens):
            return
        size = MAX_VOCAB_SIZE if self.vocab_size is None else self.vocab_size
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= size:
            raise CorruptError(
                f"{path} holds token id {low if low < 0 else high}; the vocabulary has ids 0 to {size - 1}"
            )

    def _cache_folder(self) -> str:
        if self.cache is None:
            import platformdirs

            self.cache = os.path.join(platformdirs.user_cache_dir("launchyard"), "chunks")
        return self.cache
