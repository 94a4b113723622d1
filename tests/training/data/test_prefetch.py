"""Chunks are brought before they are read, in the order of first use, and what a step reads never depends on it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.storage import files
from launchyard.training.data import chunks as chunk_file
from launchyard.training.data.cache import prefetch
from launchyard.training.data.reader import Prefetcher, TokenReader, chunks_read
from launchyard.training.data.token_store import TokenStore
from tests.support.cached import SIZE, counters, kept, opened, remote, stream

__all__ = ["remote", "stream"]


def batches(url: str, folder: Path, quota: int, start: int, stop: int, first: int = 0, n: int = 12) -> list[Any]:
    store = opened(url, folder, quota=quota, warn=lambda _: None)
    reader = TokenReader([store], seq_len=256, global_batch_size=12, seed=4)
    with Prefetcher(reader, start_step=start, stop_step=stop, first_slot=first, n=n) as feed:
        return [(step, samples.data_hash, samples.inputs.sum().item()) for step, samples in feed]


def test_order_does_not_depend_on_the_cache(tmp_path: Path, remote: str) -> None:
    local = TokenReader([TokenStore(remote.removeprefix("local://"))], seq_len=256, global_batch_size=12, seed=4)
    expected = [
        (step, samples.data_hash, samples.inputs.sum().item())
        for step in range(5, 12)
        if (samples := local.batch(step)) is not None
    ]
    for chunks in (1, 2, 3, 5, 100):
        assert batches(remote, tmp_path / str(chunks), chunks * SIZE, 5, 12) == expected
    assert batches(remote, tmp_path / "tiny", 1, 5, 12) == expected


def test_chunks_come_before_they_are_read(tmp_path: Path, remote: str) -> None:
    """In the order of first use, and a reader that is not ahead of them waits for nothing."""
    store = opened(remote, tmp_path, quota=100 * SIZE)
    reader = TokenReader([store], seq_len=256, global_batch_size=12, shuffle=False)
    with Prefetcher(reader, depth=1) as feed:
        next(feed)
        deadline = time.monotonic() + 20
        while counters(store).misses < 10 and time.monotonic() < deadline:
            time.sleep(0.01)
        waited = counters(store).wait_seconds
        for step, _ in feed:
            if step == 90:
                break
        assert counters(store).misses == 10
        assert counters(store).wait_seconds == waited
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch-tokens"]


def test_ahead_is_bounded(tmp_path: Path, remote: str) -> None:
    store = opened(remote, tmp_path, quota=6 * SIZE)
    reader = TokenReader([store], seq_len=256, global_batch_size=4, shuffle=False)
    with Prefetcher(reader, depth=1) as feed:
        next(feed)
        time.sleep(1)
        assert 1 <= counters(store).misses <= 3  # half of the quota
        assert len(kept(tmp_path)) <= 3


def test_too_small_a_cache_is_said(tmp_path: Path, remote: str) -> None:
    said: list[str] = []
    store = opened(remote, tmp_path, quota=2 * SIZE, warn=said.append)
    reader = TokenReader([store], seq_len=256, global_batch_size=12, seed=4)
    with Prefetcher(reader, stop_step=2) as feed:
        list(feed)
    assert len(said) == 1
    assert "storage.cache_size" in said[0]


def test_fetching_ends_at_once(tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_file, "HEARTBEAT_SECONDS", 0.05)
    release = threading.Event()
    read = files.read_into

    def stuck(path: str, at: int, target: memoryview) -> int:
        release.wait(30)
        return read(path, at, target)

    store = opened(remote, tmp_path)
    reader = TokenReader([store], seq_len=256, global_batch_size=12, shuffle=False)
    monkeypatch.setattr(files, "read_into", stuck)
    fetcher = prefetch.Fetcher(reader, start_step=0, stop_step=None, first_slot=0, n=12)
    while len(kept(tmp_path)) < prefetch.THREADS:
        time.sleep(0.01)
    fetcher.close()
    for thread in fetcher._threads:
        thread.join(5)
    assert not [thread for thread in fetcher._threads if thread.is_alive()]
    assert kept(tmp_path) == []
    release.set()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda found: sum(found) > 1),
    seq_len=st.integers(1, 60),
    data=st.data(),
)
def test_chunks_read_are_those_that_samples_touch(lengths: list[int], seq_len: int, data: st.DataObject) -> None:
    store = SimpleNamespace(
        starts=[0, *np.cumsum(lengths).tolist()],
        n_tokens=sum(lengths),
        chunks=[SimpleNamespace(tokens=length) for length in lengths],
    )
    samples = -(-(store.n_tokens - 1) // seq_len)
    ids = np.array(data.draw(st.lists(st.integers(0, samples - 1), min_size=1, max_size=20)))
    steps = np.arange(len(ids)) // 3 + 7
    touched: dict[int, list[int]] = {}
    for sample, step in zip(ids.tolist(), steps.tolist(), strict=True):
        for token in range(sample * seq_len, min(sample * seq_len + seq_len + 1, store.n_tokens)):
            number = next(at for at, begin in enumerate(store.starts[1:]) if token < begin)
            touched.setdefault(number, []).append(step)
    expected = {(number, min(at), max(at)) for number, at in touched.items()}
    uses = chunks_read(store, ids * seq_len, steps, seq_len)  # type: ignore[arg-type]
    assert {(use.number, use.first, use.last) for use in uses} == expected
