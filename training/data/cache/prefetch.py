"""Chunks before they are read: the order is known, so a few threads bring what the next steps need, first use first.

Steps are looked at in blocks, and only as far as the cache has room for. What fails here is left to the reader, who
retries. Knows no ranks and no model.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from launchyard.storage import retry
from launchyard.storage.errors import CorruptError, StoreError
from launchyard.training.data.cache.cache_files import NoRoomError
from launchyard.training.data.token_store import TokenStore

Ids = np.ndarray[Any, np.dtype[np.int64]]
THREADS = 2
SAMPLES_A_BLOCK = 8192  # looked at together: numpy's cost is per call
SAMPLES_AHEAD = 2**18  # no use in knowing more
RETRY_SECONDS = 30.0  # retry budget of one try; nobody waits for it yet
AGAIN_SECONDS = 10.0  # after a try that failed
IDLE_SECONDS = 0.1
TEND_SECONDS = 2.0


class Plan(Protocol):
    """The side of a TokenReader that says what it will read."""

    stores: tuple[TokenStore, ...]
    seq_len: int

    def plan(self, step: int, first_slot: int, n: int, steps: int) -> tuple[Ids, Ids]: ...


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

    def __init__(self, reader: Plan, *, start_step: int, stop_step: int | None, first_slot: int, n: int) -> None:
        self._reader, self._slots, self._stop = reader, (first_slot, n), stop_step
        self._caches = list({id(store.cache): store.cache for store in reader.stores if store.cache}.values())
        self._block = max(1, SAMPLES_A_BLOCK // n)
        self._ahead = max(2 * self._block, SAMPLES_AHEAD // n)
        self._step, self._planned = start_step, start_step
        self._needs: dict[tuple[int, int], Need] = {}  # in the order of first use
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._tended = time.monotonic()
        self._threads = [threading.Thread(target=self._run, name="fetch-chunks", daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def at(self, step: int) -> None:
        """The reader reads this step now."""
        self._step = step

    def close(self) -> None:
        """Begin nothing more; what is on its way is given up within seconds."""
        self._closed.set()
        with self._lock:
            self._needs.clear()
            self._tell_caches()

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
        except (NoRoomError, CorruptError, StoreError, OSError, ValueError):  # the reader will meet it, and say it
            need.again, need.state = time.monotonic() + AGAIN_SECONDS, "wanted"
        else:
            need.state = "ready"

    def _beat(self) -> None:
        if self._closed.is_set():
            raise _Closed

    def _next(self) -> Need | None:
        """What to bring now. Looks one block of steps further if there is room, and nothing nearer to bring."""
        with self._lock:
            while not self._closed.is_set():
                self._forget()
                now, size = time.monotonic(), 0
                for need in self._needs.values():
                    cache, chunk = need.store.cache, need.store.chunks[need.number]
                    assert cache is not None
                    size += chunk.size
                    if size > cache.ahead_bytes:
                        return None
                    if need.state == "wanted" and need.again <= now:
                        need.state = "busy"
                        return need
                if not self._look_ahead():
                    return None
        return None

    def _forget(self) -> None:
        """What was read, and now and then: what others evicted, and what must not look unused to them."""
        for key in [key for key, need in self._needs.items() if need.last < self._step]:
            del self._needs[key]
        if time.monotonic() - self._tended < TEND_SECONDS:
            return
        self._tended = time.monotonic()
        for store in {id(need.store): need.store for need in self._needs.values()}.values():
            store.drop_evicted()
            store.touch_held()
        for need in self._needs.values():
            assert need.store.cache is not None
            if need.state == "ready" and not need.store.cache.has(need.store.chunks[need.number]):
                need.state = "wanted"

    def _look_ahead(self) -> bool:
        """Plan the next block of steps; whether there was one to plan."""
        first = max(self._planned, self._step)
        if first - self._step > self._ahead or (self._stop is not None and first >= self._stop):
            return False
        steps = self._block if self._stop is None else min(self._block, self._stop - first)
        sources, samples = self._reader.plan(first, *self._slots, steps)
        for need in self._needs_of(first, sources, samples):
            known = self._needs.setdefault((id(need.store), need.number), need)
            known.last = max(known.last, need.last)
        if self._planned == first == self._step:
            self._warn_of_a_small_cache(first)
        self._planned = first + steps
        self._tell_caches()
        return True

    def _warn_of_a_small_cache(self, step: int) -> None:
        """Say it if not even one step's chunks stay: each would be fetched again for each step."""
        needs = self._needs_of(step, *self._reader.plan(step, *self._slots, 1))
        for cache in self._caches:
            of_it = [need.store.chunks[need.number].size for need in needs if need.store.cache is cache]
            if sum(of_it) * cache.share > cache.quota:
                cache.say_once(
                    "small",
                    f"the cache of chunks at {cache.folder} may hold {cache.quota / 1e9:.3g} GB, but each step reads "
                    f"{len(of_it)} chunks of {sum(of_it) / 1e9:.3g} GB in each of {cache.share} workers: they will be "
                    f"fetched again and again. Set storage.cache_size to {4 * sum(of_it) * cache.share / 1e9:.3g}GB or "
                    "more in the cluster file",
                )

    def _needs_of(self, first: int, sources: Ids, samples: Ids) -> list[Need]:
        """The chunks of remote stores in a block of steps, by the step that first reads them."""
        at = np.broadcast_to(np.arange(first, first + len(samples))[:, None], samples.shape)
        found: list[tuple[Need, int]] = []
        for source, store in enumerate(self._reader.stores):
            if store.cache is not None:
                of_it = sources == source
                reads = chunks_read(store, samples[of_it] * self._reader.seq_len, at[of_it], self._reader.seq_len)
                found += [(Need(store, number, ends), begins) for number, begins, ends in reads]
        return [need for need, _ in sorted(found, key=lambda entry: entry[1])]

    def _tell_caches(self) -> None:
        for cache in self._caches:
            needs = [need for need in self._needs.values() if need.store.cache is cache]
            cache.keep(self, [need.store.chunks[need.number] for need in needs])


def chunks_read(store: TokenStore, starts: Ids, steps: Ids, seq_len: int) -> list[tuple[int, int, int]]:
    """The chunks that hold tokens start … start + seq_len of samples, each with the first and the last of `steps`."""
    bounds = np.asarray(store.starts[1:-1])
    first = np.searchsorted(bounds, starts, side="right")
    last = np.searchsorted(bounds, np.minimum(starts + seq_len, store.n_tokens - 1), side="right")
    spread = range(int((last - first).max(initial=0)) + 1)
    number = np.concatenate([np.minimum(first + further, last) for further in spread])
    at = np.concatenate([steps for _ in spread])
    order = np.lexsort((at, number))
    number, at = number[order], at[order]
    chunks, begins = np.unique(number, return_index=True)
    ends = np.append(begins[1:], len(number)) - 1
    found = zip(chunks.tolist(), at[begins].tolist(), at[ends].tolist(), strict=True)
    return [read for read in found if store.chunks[read[0]].tokens]  # an empty one may lie between
