"""The local cache: chunks of a store (and compressed ones) as files of this machine, mapped and checked.

A chunk is fetched once for all processes of a machine, verified on its way, and again when another process first
touches it: a copy with a flipped bit, or cut by a power failure, is dropped and fetched again. If the disk cannot be
used, chunks are held in memory, and a warning is logged. Files, locks and quota: training/data/cache/cache_files.py.
Knows no order.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import xxhash

from launchyard.host.locks import is_file
from launchyard.storage.errors import StoreError
from launchyard.storage.files import typed_path
from launchyard.training.data.cache import cache_files
from launchyard.training.data.chunks import Array, Chunk, fetch_chunk, map_file, put
from launchyard.training.telemetry.buckets import Buckets
from launchyard.training.telemetry.exporter import Exporter
from launchyard.training.telemetry.metric_table import REQUEST_BUCKETS

MAGIC = b"launchyd"  # after a chunk: it is whole; then its xxh3, and a number that no other copy has
TRAILER_BYTES = 24
TOUCH_SECONDS = 60.0
MEMORY_SHARE = 4  # without a disk: a quarter of the memory that is available
RESERVE_TRIES = 8
RESERVE_SECONDS = 0.5  # until others have dropped evicted files


@dataclass
class Counters:
    """Since the process began."""

    bytes: int = 0  # fetched from the store
    hits: int = 0  # chunks that were in the cache when they were wanted
    misses: int = 0  # chunks that had to be fetched
    damaged: int = 0  # copies in the cache that had changed
    wait_seconds: float = 0.0  # that a reader had to wait for chunks
    cached_bytes: int = 0  # bytes in the cache at the last reservation
    requests: int = 0  # that a store answered
    errors: int = 0  # requests that failed


@dataclass(frozen=True)
class OpenChunk:
    """The bytes of a chunk, and where the cache has them: a path, or memory."""

    raw: Array
    path: str | None
    stat: os.stat_result | None
    key: str


class ChunkReader(Protocol):
    """A holder of bytes of the cache. A mapping occupies the space of an evicted file until it is dropped."""

    def drop_evicted(self) -> None: ...


class _DiskError(Exception):
    """The disk cannot be used; the message is the reason."""


class ChunkCache:
    """Chunks under a folder, at most `quota` bytes of them for all processes of the machine, `share` of them like this.

    `warn` is called once for each problem that a person should fix. Safe for any number of threads and processes.
    """

    def __init__(
        self,
        folder: str | None = None,
        *,
        quota: int | None = None,
        share: int = 1,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = os.path.abspath(typed_path(folder)) if folder else cache_files.default_folder()
        self.share = share
        self.counters = Counters()
        self.durations = Buckets(REQUEST_BUCKETS)  # seconds of each request to a store, retries included
        self._quota = quota
        self._warn = warn or (lambda text: print(text, file=sys.stderr))
        self._logged: set[str] = set()
        self._lock = threading.Lock()
        self._sources: dict[str, tuple[str, int]] = {}  # a source's folder, and the file whose lock marks it as in use
        weakref.finalize(self, _close, self._sources)
        self._readers: weakref.WeakSet[ChunkReader] = weakref.WeakSet()
        self._recount = True  # once, in case that what is written down is wrong: a process or the machine was killed
        self._stalled: set[str] = set()  # parts that are swept when their holder is gone
        self._pinned: dict[int, frozenset[str]] = {}
        self._verified: set[bytes] = set()
        self._memory: OrderedDict[str, Array] = OrderedDict()
        self._memory_locks: dict[str, threading.Lock] = {}
        self._memory_bytes: int | None = None

    @property
    def quota(self) -> int:
        """Bytes; by default see cache_files.default_quota, decided once."""
        if self._quota is None:
            self._quota = cache_files.default_quota(self.folder)
        return self._quota

    @property
    def ahead_bytes(self) -> int:
        """The limit of one process for fetching ahead: its share of one half, the other is for other runs."""
        limit = self.quota if self._memory_bytes is None else self._memory_bytes * self.share
        return limit // 2 // self.share

    def log_once(self, kind: str, text: str) -> None:
        with self._lock:
            if kind in self._logged:
                return
            self._logged.add(kind)
        self._warn(text)

    def show(self, exporter: Exporter) -> None:
        """Sets the series of the cache since the process began."""
        counters = self.counters
        exporter.count("trainer_data_bytes_total", counters.bytes)
        exporter.count("trainer_data_requests_total", counters.requests)
        exporter.count("trainer_data_errors_total", counters.errors)
        exporter.count("trainer_data_cache_hits_total", counters.hits)
        exporter.count("trainer_data_cache_misses_total", counters.misses)
        exporter.count("trainer_data_cache_damaged_total", counters.damaged)
        exporter.count("trainer_data_chunk_wait_seconds_total", counters.wait_seconds)
        exporter.set("trainer_data_cache_bytes", counters.cached_bytes)
        exporter.show("trainer_data_request_duration_seconds", self.durations)

    # -- for readers -------------------------------------------------------------------------------------------------
    def join(self, reader: ChunkReader) -> None:
        """Register a reader, which is asked to drop evicted chunks as long as it lives."""
        self._readers.add(reader)

    def keep(self, owner: object, chunks: list[Chunk]) -> None:
        """Do not evict these for a fetch that can wait; replaces the owner's earlier list."""
        paths = frozenset(path for path in map(self._path_if_known, chunks) if path is not None)
        with self._lock:
            self._pinned[id(owner)] = paths
            if not chunks:
                del self._pinned[id(owner)]

    def open(self, chunk: Chunk, *, urgent: bool = True, beat: Callable[[], None] = lambda: None) -> OpenChunk:
        """The bytes of a chunk, fetched if they are not in the cache.

        CorruptError, StoreError: of the chunk in its store. A fetch that is not `urgent` evicts only chunks that are
        not kept: cache_files.QuotaError. `beat` is called now and then while waiting, and may raise.
        """
        try:
            return self._on_disk(chunk, urgent, beat)
        except _DiskError as error:
            self.log_once(
                "disk",
                f"the cache of chunks at {self.folder} cannot be used: {error}. Chunks are held in memory instead, by "
                "each worker itself. Free some space, or name another folder with storage.cache in the cluster file",
            )
            return self._in_memory(chunk, beat)

    def evicted(self, opened: OpenChunk) -> bool:
        """Returns True if the cache has evicted an opened chunk."""
        if opened.path is None:
            return opened.key not in self._memory
        try:
            return opened.stat is None or not os.path.samestat(os.stat(opened.path), opened.stat)
        except OSError:
            return True

    def has(self, chunk: Chunk) -> bool:
        """Returns True if a chunk seems to be in the cache."""
        path = self._path_if_known(chunk)
        return _key(chunk) in self._memory or (path is not None and os.path.exists(path))

    def touch(self, opened: OpenChunk) -> None:
        """It is still used. Cheap enough for now and then, not for each read."""
        with contextlib.suppress(OSError):
            if opened.path is not None and time.time() - os.stat(opened.path).st_mtime > TOUCH_SECONDS:
                os.utime(opened.path)

    def count(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                setattr(self.counters, name, getattr(self.counters, name) + amount)

    def _note(self, seconds: float, answered: bool) -> None:
        """A request has ended."""
        with self._lock:
            self.durations.add(seconds)
            if answered:
                self.counters.requests += 1
            else:
                self.counters.errors += 1

    # -- on disk -----------------------------------------------------------------------------------------------------
    def _path(self, chunk: Chunk) -> str:
        url = os.path.dirname(chunk.path)
        with self._lock:
            if url not in self._sources:
                self._sources[url] = cache_files.enter_source(self.folder, url)
        return os.path.join(self._sources[url][0], f"{_key(chunk)}.bin")

    def _path_if_known(self, chunk: Chunk) -> str | None:
        source = self._sources.get(os.path.dirname(chunk.path))
        return None if source is None else os.path.join(source[0], f"{_key(chunk)}.bin")

    def _on_disk(self, chunk: Chunk, urgent: bool, beat: Callable[[], None]) -> OpenChunk:
        with _disk():
            path = self._path(chunk)
        part = f"{path.removesuffix('.bin')}.part"
        while True:
            found = self._find(path, chunk)
            if found is not None:
                self.count(hits=1)
                return found
            try:
                with _disk():
                    file, mine = cache_files.lock_part(part, beat)
            except cache_files.StalledError:
                self._stalled.add(part)
                part = f"{path.removesuffix('.bin')}.{secrets.token_hex(4)}.part"
                continue
            try:
                if mine and os.path.exists(path):  # completed between our check and our lock
                    os.unlink(part)
                elif mine:
                    return self._bring(chunk, file, part, path, urgent, beat)
                elif (opened := self._accept(file, path, chunk)) is not None:  # by the process we waited for
                    self.count(hits=1)
                    return opened
            finally:
                os.close(file)

    def _find(self, path: str, chunk: Chunk) -> OpenChunk | None:
        """Returns the chunk if the cache has it; a damaged copy is dropped."""
        with _disk():
            try:
                file = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            try:
                opened = self._accept(file, path, chunk)
                if opened is not None:
                    self.touch(opened)
                    return opened
                self.count(damaged=1)
                self._warn(f"{path}, a copy of {chunk.path}, is damaged: dropped, and fetched again")
                if is_file(path, file):
                    os.unlink(path)
                return None
            finally:
                os.close(file)

    def _accept(self, file: int, path: str, chunk: Chunk) -> OpenChunk | None:
        """Returns the chunk in an open file if it is complete and nothing else. Hashed once per process and copy."""
        raw = map_file(file)
        if len(raw) != chunk.size + TRAILER_BYTES:
            return None
        trailer = raw[chunk.size :].tobytes()
        magic = trailer[:8]
        xxh3 = trailer[8:16].hex()
        number = trailer[16:]
        if magic != MAGIC or (chunk.xxh3 is not None and xxh3 != chunk.xxh3):
            return None
        if number not in self._verified:
            if xxhash.xxh3_64_hexdigest(raw[: chunk.size].data) != xxh3:
                return None
            self._verified.add(number)
        return OpenChunk(raw[: chunk.size], path, os.fstat(file), _key(chunk))

    def _bring(
        self, chunk: Chunk, file: int, part: str, path: str, urgent: bool, beat: Callable[[], None]
    ) -> OpenChunk:
        try:
            self._reserve(file, chunk, urgent=urgent)

            def renew() -> None:
                beat()
                with _disk():
                    os.utime(file)  # for processes that wait

            xxh3 = fetch_chunk(chunk, lambda at, raw: self._write(file, at, raw, chunk), beat=renew, note=self._note)
            number = secrets.token_bytes(8)
            self._write(file, chunk.size, MAGIC + bytes.fromhex(xxh3) + number, chunk)
            with _disk():
                cache_files.complete(self.folder, file, part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
        self._verified.add(number)
        self.count(misses=1, bytes=chunk.size)
        with _disk():
            return OpenChunk(map_file(file)[: chunk.size], path, os.fstat(file), _key(chunk))

    def _reserve(self, file: int, chunk: Chunk, *, urgent: bool, more: bool = False) -> None:
        with self._lock:
            keep = frozenset().union(*self._pinned.values())
        size = chunk.size + TRAILER_BYTES
        with _disk():
            freed, cached_bytes = cache_files.reserve(
                self.folder,
                file,
                size,
                quota=self.quota,
                keep=keep,
                urgent=urgent,
                more=more,
                recount=self._recount or any(map(os.path.exists, self._stalled)),
            )
        self._recount = False
        self.counters.cached_bytes = cached_bytes
        if freed:
            self.drop_evicted()

    def drop_evicted(self) -> None:
        """Drop this process' mappings of evicted files."""
        for reader in list(self._readers):
            reader.drop_evicted()

    def _write(self, file: int, at: int, raw: bytes | memoryview, chunk: Chunk) -> None:
        view = memoryview(raw)
        tries = 0
        while len(view):
            try:
                done = os.pwrite(file, view, at)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or tries == RESERVE_TRIES:
                    raise _DiskError(error.strerror or str(error)) from error
                if tries % 2 == 0:
                    self._reserve(file, chunk, urgent=True, more=True)
                time.sleep(RESERVE_SECONDS * (tries > 0))
                tries += 1
                continue
            view = view[done:]
            at = at + done

    # -- in memory ---------------------------------------------------------------------------------------------------
    def _in_memory(self, chunk: Chunk, beat: Callable[[], None]) -> OpenChunk:
        key = _key(chunk)
        with self._lock:
            one_at_a_time = self._memory_locks.setdefault(key, threading.Lock())
        with one_at_a_time:
            raw = self._memory.get(key)
            if raw is None:
                raw = self._bring_to_memory(chunk, key, beat)
                self.drop_evicted()
            else:
                self.count(hits=1)
        return OpenChunk(raw, None, None, key)

    def _bring_to_memory(self, chunk: Chunk, key: str, beat: Callable[[], None]) -> Array:
        if self._memory_bytes is None:
            import psutil

            self._memory_bytes = psutil.virtual_memory().available // MEMORY_SHARE // self.share
        raw = np.empty(chunk.size, np.uint8)
        fetch_chunk(chunk, partial(put, raw), beat=beat, note=self._note)
        self.count(misses=1, bytes=chunk.size)
        with self._lock:
            self._memory[key] = raw
            while len(self._memory) > 1 and sum(map(len, self._memory.values())) > self._memory_bytes:
                self._memory.popitem(last=False)
        return raw


def _close(sources: dict[str, tuple[str, int]]) -> None:
    for _, file in sources.values():
        os.close(file)


def _key(chunk: Chunk) -> str:
    return hashlib.sha256(f"{chunk.path} {chunk.xxh3} {chunk.size}".encode()).hexdigest()[:32]


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    """Raises _DiskError for errors of this machine's disk; those of the store pass."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise _DiskError(error.strerror or str(error)) from error
