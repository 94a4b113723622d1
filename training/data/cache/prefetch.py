"""Fetches chunks before they are read: the order is known, so a few threads fetch those of the next steps in order.

Steps are planned in blocks, and only as far as the cache has space. Errors are left to the reader, which retries.
Knows no ranks and no model.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Protocol

from launchyard.storage import retry
from launchyard.storage.errors import CorruptError, StoreError
from launchyard.training.data.cache.cache_files import QuotaError
from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.token_store import TokenStore

THREADS = 2
SAMPLES_A_BLOCK = 8192  # planned together: numpy's cost is per call
SAMPLES_AHEAD = 2**18  # no use in knowing more
RETRY_SECONDS = 30.0  # retry budget of one try; no reader waits for it yet
AGAIN_SECONDS = 10.0  # after a try that failed
IDLE_SECONDS = 0.1
TEND_SECONDS = 2.0


@dataclass(frozen=True)
class ChunkUse:
    """A chunk of a remote store that some steps read, from the first of them to the last."""

    store: TokenStore
    number: int
    first: int
    last: int


class ChunkPlan(Protocol):
    """The part of a Reader that lists the chunks of coming steps."""

    def chunks(self, step: int, first_slot: int, n: int, steps: int) -> list[ChunkUse]: ...


@dataclass
class Need:
    """One chunk that coming steps read."""

    store: TokenStore
    number: int
    last: int  # step that reads it, as far as is known
    state: str = "wanted"  # busy, ready
    again: float = 0.0  # not before


class _Closed(Exception):
    pass


class Fetcher:
    """Brings the chunks of the same slots of coming steps into the cache, and keeps them there until they are read."""

    def __init__(self, reader: ChunkPlan, *, start_step: int, stop_step: int | None, first_slot: int, n: int) -> None:
        self._reader = reader
        self._slots = (first_slot, n)
        self._stop = stop_step
        self._caches: dict[int, ChunkCache] = {}  # those that were met
        self._block = max(1, SAMPLES_A_BLOCK // n)
        self._ahead = max(2 * self._block, SAMPLES_AHEAD // n)
        self._step = start_step
        self._planned = start_step
        self._needs: dict[tuple[int, int], Need] = {}  # in the order of first use
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._tended = time.monotonic()
        self._threads = [threading.Thread(target=self._run, name="fetch-chunks", daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def at(self, step: int) -> None:
        """The reader reads this step now."""
        self._step = step

    def close(self) -> None:
        """Begin no more fetches; those under way are abandoned within seconds."""
        self._closed.set()
        with self._lock:
            self._needs.clear()
            self._notify_caches()

    # -- threads -----------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._closed.is_set():
            need = self._next()
            if need is None:
                self._closed.wait(IDLE_SECONDS)
            else:
                self._fetch(need)

    def _fetch(self, need: Need) -> None:
        try:
            with retry.retry_budget(RETRY_SECONDS):
                need.store.bring(need.number, urgent=False, beat=self._beat)
        except _Closed:
            return
        except (QuotaError, CorruptError, StoreError, OSError, ValueError):  # the reader will meet it, and report it
            need.again = time.monotonic() + AGAIN_SECONDS
            need.state = "wanted"
        else:
            need.state = "ready"

    def _beat(self) -> None:
        if self._closed.is_set():
            raise _Closed

    def _next(self) -> Need | None:
        """Returns the next chunk to fetch. Plans another block of steps if there is space and nothing else to do."""
        with self._lock:
            while not self._closed.is_set():
                self._prune()
                now = time.monotonic()
                size = 0
                for need in self._needs.values():
                    cache = need.store.cache
                    chunk = need.store.chunks[need.number]
                    assert cache is not None
                    size += chunk.size
                    if size > cache.ahead_bytes:
                        return None
                    if need.state == "wanted" and need.again <= now:
                        need.state = "busy"
                        return need
                if not self._plan_block():
                    return None
        return None

    def _prune(self) -> None:
        """Drops chunks that were read. Now and then also those that others evicted, and touches those still in use."""
        for key in [key for key, need in self._needs.items() if need.last < self._step]:
            del self._needs[key]
        if time.monotonic() - self._tended < TEND_SECONDS:
            return
        self._tended = time.monotonic()
        for store in {id(need.store): need.store for need in self._needs.values()}.values():
            store.drop_evicted()
            store.touch_open()
        for need in self._needs.values():
            assert need.store.cache is not None
            if need.state == "ready" and not need.store.cache.has(need.store.chunks[need.number]):
                need.state = "wanted"

    def _plan_block(self) -> bool:
        """Plan the next block of steps. Returns False if there was none to plan."""
        first = max(self._planned, self._step)
        if first - self._step > self._ahead or (self._stop is not None and first >= self._stop):
            return False
        steps = self._block if self._stop is None else min(self._block, self._stop - first)
        for need in self._needs_of(first, steps):
            planned = self._needs.setdefault((id(need.store), need.number), need)
            planned.last = max(planned.last, need.last)
        if self._planned == first == self._step:
            self._warn_of_a_small_cache(first)
        self._planned = first + steps
        self._notify_caches()
        return True

    def _warn_of_a_small_cache(self, step: int) -> None:
        """Warn if the cache cannot hold one step's chunks: each would be fetched again for each step."""
        needs = self._needs_of(step, 1)
        for cache in self._caches.values():
            of_it = [need.store.chunks[need.number].size for need in needs if need.store.cache is cache]
            if sum(of_it) * cache.share > cache.quota:
                cache.log_once(
                    "small",
                    f"the cache of chunks at {cache.folder} may hold {cache.quota / 1e9:.3g} GB, but each step reads "
                    f"{len(of_it)} chunks of {sum(of_it) / 1e9:.3g} GB in each of {cache.share} workers: they will be "
                    f"fetched again and again. Set storage.cache_size to {4 * sum(of_it) * cache.share / 1e9:.3g}GB or "
                    "more in the cluster file",
                )

    def _needs_of(self, first: int, steps: int) -> list[Need]:
        """The chunks of remote stores in a block of steps, by the step that first reads them."""
        uses = self._reader.chunks(first, *self._slots, steps)
        for use in uses:
            assert use.store.cache is not None
            self._caches[id(use.store.cache)] = use.store.cache
        return [Need(use.store, use.number, use.last) for use in uses]

    def _notify_caches(self) -> None:
        for cache in self._caches.values():
            needs = [need for need in self._needs.values() if need.store.cache is cache]
            cache.keep(self, [need.store.chunks[need.number] for need in needs])
