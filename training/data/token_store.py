"""All tokens of a folder of chunks as one flat array: finds the chunk of a token, checks and maps it.

Knows no text, no samples and no order.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate

import numpy as np

from launchyard.host.locks import open_shared
from launchyard.storage.errors import CorruptError
from launchyard.storage.files import exists, is_remote, normal
from launchyard.training.data.cache.chunk_cache import ChunkCache, OpenChunk
from launchyard.training.data.chunks import Array, Chunk, fetch_chunk, open_chunk, put, tokens_of
from launchyard.training.data.dataset_spec import vocab_size_of
from launchyard.training.data.index import DIGESTS, INDEX, Digests, read_index, read_model

MAX_OPEN_CHUNKS = 256  # maps; each keeps a file open, and a process often may have no more than 1,024
MAX_VOCAB_SIZE = 2**31 - 1  # ids are hashed as int32
ID_BITS = 2**31 - 1  # of a token of instructions; the bit above them marks what is trained for


class TokenStore:
    """All tokens of a folder of chunks, local or URL, as one flat array.

    A chunk is checked the first time it is touched (size, header, xxh3 where digests.json has it, ids below
    `vocab_size`); CorruptError names the file. `vocab_size` defaults to that of the prepared folder. `cache` turns
    chunks of a URL, and compressed ones, into local files; others are mapped in their folder.
    """

    def __init__(self, folder: str, *, vocab_size: int | None = None, cache: ChunkCache | None = None) -> None:
        self.folder = normal(folder)
        index = read_index(self.folder)
        self.dtype = np.dtype(index.dtype).newbyteorder("<")
        digests = self._read_digests({entry.filename: entry.dim for entry in index.chunks})
        self.verifiable = digests is not None
        self.chunks = [
            Chunk(
                path=f"{self.folder}/{entry.filename}",
                items=entry.chunk_size,
                tokens=entry.dim or 0,
                dtype=self.dtype,
                xxh3=None if digests is None else digests.chunks[entry.filename].xxh3,
                compression=index.config.compression,
            )
            for entry in index.chunks
        ]
        self.starts = list(accumulate((chunk.tokens for chunk in self.chunks), initial=0))
        self.n_tokens = self.starts[-1]
        self.vocab_size = vocab_size if vocab_size is not None else vocab_size_of(os.path.dirname(self.folder))
        self._has_rows = digests is not None and digests.rows is not None
        self.cache: ChunkCache | None = None
        if not is_remote(self.folder):  # others see that it is in use
            weakref.finalize(self, os.close, open_shared(f"{self.folder}/{INDEX}"))
        if is_remote(self.folder) or index.config.compression:
            self.cache = cache or ChunkCache()
            self.cache.join(self)
        self._verified: set[int] = set()
        self._open: OrderedDict[int, Array] = OrderedDict()
        self._cached: dict[int, OpenChunk] = {}
        self._lock = threading.Lock()
        self._brought = dict[int, threading.Lock]()

    def _read_digests(self, listed: dict[str, int | None]) -> Digests | None:
        path = f"{self.folder}/{DIGESTS}"
        if not exists(path):
            return None
        digests = read_model(path, Digests)
        if listed != {name: chunk.tokens for name, chunk in digests.chunks.items()}:
            raise CorruptError(f"{path} and the index.json beside it list different chunks")
        return digests

    def read(self, start: int, length: int) -> Array:
        """Tokens start … start + length - 1: (length,) of the stored type; a view where they lie in one chunk."""
        if start < 0 or length < 0 or start + length > self.n_tokens:
            raise IndexError(f"tokens {start} to {start + length} of {self.n_tokens} in {self.folder}")
        number = bisect_right(self.starts, start) - 1
        if length and start + length <= self.starts[number + 1]:
            offset = start - self.starts[number]
            return self.chunk(number)[offset : offset + length]
        parts: list[Array] = []
        while length > 0:
            offset = start - self.starts[number]
            part = self.chunk(number)[offset : offset + length]
            parts.append(part)
            start = start + len(part)
            length = length - len(part)
            number = number + 1
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def chunk(self, number: int) -> Array:
        """All tokens of one chunk, memory-mapped and checked."""
        found = self._open.get(number)
        if found is not None:
            return found
        if self.cache is None:
            return self._keep(number, self._map(number), None)
        began = time.monotonic()
        self.drop_evicted()
        found = self.bring(number)
        self.cache.count(wait_seconds=time.monotonic() - began)
        return found

    def bring(self, number: int, *, urgent: bool = True, beat: Callable[[], None] = lambda: None) -> Array:
        """A chunk through the cache, by any thread, one at a time; see ChunkCache.open."""
        assert self.cache is not None
        with self._lock:
            one_at_a_time = self._brought.setdefault(number, threading.Lock())
        with one_at_a_time:
            found = self._open.get(number)
            if found is not None:
                return found
            opened = self.cache.open(self.chunks[number], urgent=urgent, beat=beat)
            tokens = tokens_of(self.chunks[number], opened.raw)
            self._check_ids(number, tokens)
            return self._keep(number, tokens, opened)

    def verify(self, number: int) -> None:
        """Read a whole chunk where it lies, past the cache. CorruptError if its bytes have changed."""
        chunk = self.chunks[number]
        if self.cache is None:
            tokens = open_chunk(chunk)
        else:
            raw = np.empty(chunk.size, np.uint8)
            fetch_chunk(chunk, partial(put, raw))
            tokens = tokens_of(chunk, raw)
        self._check_ids(number, tokens)

    def _map(self, number: int) -> Array:
        chunk = self.chunks[number]
        verified = number in self._verified  # opened again after MAX_OPEN_CHUNKS others
        tokens = open_chunk(replace(chunk, xxh3=None) if verified else chunk)
        self._check_ids(number, tokens)
        return tokens

    def _keep(self, number: int, tokens: Array, opened: OpenChunk | None) -> Array:
        with self._lock:
            self._open[number] = tokens
            if opened is not None:
                self._cached[number] = opened
            while len(self._open) > MAX_OPEN_CHUNKS:
                self._cached.pop(self._open.popitem(last=False)[0], None)
        return tokens

    def drop_evicted(self) -> None:
        """Drop chunks that the cache has evicted: a mapping would keep their space."""
        assert self.cache is not None
        for number, opened in list(self._cached.items()):
            if self.cache.evicted(opened):
                with self._lock:
                    if self._cached.get(number) is opened:
                        del self._cached[number], self._open[number]

    def touch_open(self) -> None:
        """Mark the open chunks as used in the cache."""
        assert self.cache is not None
        for opened in list(self._cached.values()):
            self.cache.touch(opened)

    def _check_ids(self, number: int, tokens: Array) -> None:
        verified = number in self._verified and (self.cache is None or self.chunks[number].xxh3 is not None)
        if verified or not len(tokens):
            return
        size = MAX_VOCAB_SIZE if self.vocab_size is None else self.vocab_size
        if self._has_rows:
            tokens = tokens & np.uint32(ID_BITS)
        low = int(tokens.min())
        high = int(tokens.max())
        if low < 0 or high >= size:
            raise CorruptError(
                f"{self.chunks[number].path} holds token id {low if low < 0 else high}; "
                f"the vocabulary has ids 0 to {size - 1}"
            )
        self._verified.add(number)
