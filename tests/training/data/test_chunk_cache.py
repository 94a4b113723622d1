"""The cache of chunks, with real processes, kills and disks. local:// stands for a store that processes share."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from launchyard.host.locks import exclusive
from launchyard.launcher.cli import data
from launchyard.storage import files
from launchyard.storage.errors import CorruptError
from launchyard.training.data import chunks as chunk_file
from launchyard.training.data.cache import cache_files
from launchyard.training.data.cache.chunk_cache import TRAILER_BYTES
from launchyard.training.data.prepare.prepare import prepare
from launchyard.training.data.token_store import TokenStore
from tests.support.cached import (
    CHUNK,
    SIZE,
    TOTAL,
    children,
    counters,
    go,
    kept,
    line,
    make,
    opened,
    remote,
    start,
    stream,
)

__all__ = ["children", "remote", "stream"]


# -- processes -------------------------------------------------------------------------------------------------------
def test_processes_bring_a_chunk_once(
    tmp_path: Path, remote: str, stream: list[int], children: list[subprocess.Popen[str]]
) -> None:
    orders = [list(range(10)), list(range(10)), list(range(9, -1, -1)), random.Random(3).sample(range(10), 10)]
    for order in orders:
        start(children, remote, tmp_path, order=order, slow=0.01)
    began = time.monotonic()
    for child in children:
        go(child)
    found = [json.loads(line(child)) for child in children]
    assert time.monotonic() - began < 20  # a lock that is not let go would take longer
    assert sum(one["misses"] for one in found) == 10
    assert sum(one["hits"] for one in found) == 30
    assert sum(one["bytes"] for one in found) == 10 * 12 + 2 * TOTAL
    assert {one["total"] for one in found} == {sum(stream)}
    assert kept(tmp_path) == [".bin"] * 10


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_who_brings_a_chunk_is_killed_or_hangs(
    tmp_path: Path,
    remote: str,
    stream: list[int],
    children: list[subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
    how: signal.Signals,
) -> None:
    """Another waits for it, and takes over."""
    monkeypatch.setattr(cache_files, "STALLED_SECONDS", 2.0 if how == signal.SIGSTOP else 60.0)
    child = start(children, remote, tmp_path, order=[3], hang=True)
    go(child)
    assert line(child) == "half way\n"
    found: list[list[int]] = []
    store = opened(remote, tmp_path)
    waiting = threading.Thread(target=lambda: found.append(store.chunk(3).tolist()))
    waiting.start()
    time.sleep(0.3)
    assert not found
    os.kill(child.pid, how)
    waiting.join(20)
    assert found == [stream[3 * CHUNK : 4 * CHUNK]]
    child.kill()
    child.wait()
    assert store.read(0, TOTAL).tolist() == stream
    assert kept(tmp_path) == [".bin"] * 10  # what the dead one left was swept
    assert counters(store).misses == 10


def test_quota_with_concurrent_readers(
    tmp_path: Path, remote: str, stream: list[int], children: list[subprocess.Popen[str]]
) -> None:
    draw = random.Random(5)
    orders = [[draw.randrange(10) for _ in range(60)] for _ in range(3)]
    for order in orders:
        start(children, remote, tmp_path, order=order, quota=4 * SIZE)
    for child in children:
        go(child)
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            with exclusive(str(tmp_path / "lock")):
                sizes = {os.path.splitext(entry.path)[0]: entry.size for entry in cache_files.scan(str(tmp_path))}
            most = max(most, sum(sizes.values()))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    found = [json.loads(line(child)) for child in children]
    done.set()
    watcher.join()
    parts = [sum(stream[CHUNK * number : CHUNK * (number + 1)]) for number in range(10)]
    assert [one["total"] for one in found] == [sum(parts[number] for number in order) for order in orders]
    assert 3 * SIZE < most <= 4 * SIZE
    assert all(one["damaged"] == 0 for one in found)


# -- room ------------------------------------------------------------------------------------------------------------
def deleted_maps(folder: Path) -> int:
    return sum(str(folder) in row and "(deleted)" in row for row in Path("/proc/self/maps").read_text().splitlines())


def test_evicted_while_mapped(tmp_path: Path, remote: str, stream: list[int]) -> None:
    """What was handed out stays readable, and who holds it lets go: at most two chunks of disk in the end."""
    first, second = (opened(remote, tmp_path, quota=2 * SIZE) for _ in range(2))
    view = first.chunk(0)
    for number in range(1, 6):
        second.chunk(number)
    assert deleted_maps(tmp_path) == 1  # of `first`, who does not know yet
    assert first.chunk(0) is view
    first.drop_evicted()
    assert view.tolist() == stream[:CHUNK]
    del view
    assert deleted_maps(tmp_path) == 0
    assert first.chunk(0).tolist() == stream[:CHUNK]
    assert counters(first).misses == 2
    assert kept(tmp_path) == [".bin"] * 2


@pytest.mark.parametrize("oldest", [0, 1, 2])
def test_least_recently_used_goes_first(tmp_path: Path, remote: str, oldest: int) -> None:
    store = opened(remote, tmp_path, quota=4 * SIZE)
    assert store.cache is not None
    for number in range(4):
        store.chunk(number)
        used = 1000 if number == 3 else 2000 if number == oldest else 3000 + number
        os.utime(store.cache.open(store.chunks[number]).path or "", (0, used))
    again = opened(remote, tmp_path, quota=4 * SIZE)
    again.chunk(3)  # longest ago, but that touches it
    again.chunk(5)
    assert [store.cache.has(store.chunks[number]) for number in range(4)] == [number != oldest for number in range(4)]


def test_what_is_read_next_is_not_evicted_for_what_can_wait(tmp_path: Path, remote: str) -> None:
    store = opened(remote, tmp_path, quota=2 * SIZE)
    assert store.cache is not None
    store.bring(0), store.bring(1)
    store.cache.keep(store, store.chunks[:2])
    with pytest.raises(cache_files.QuotaError):
        store.bring(2, urgent=False)
    assert kept(tmp_path) == [".bin"] * 2
    store.cache.keep(store, store.chunks[1:2])
    store.bring(2, urgent=False)
    assert [store.cache.has(store.chunks[number]) for number in range(3)] == [False, True, True]
    store.cache.keep(store, store.chunks[1:3])
    store.bring(3)
    assert store.cache.has(store.chunks[3])
    assert kept(tmp_path) == [".bin"] * 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for four chunks and a half."""
    place = tmp_path / "disk"
    place.mkdir()
    size = 4 * SIZE + SIZE // 2 + 16384
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("only root can mount a disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk(small_disk: Path, remote: str, stream: list[int]) -> None:
    """What is ours goes first; beside what is not ours, memory serves, and it is said once."""
    said: list[str] = []
    store = opened(remote, small_disk, quota=2**40, warn=said.append)
    assert [token for number in range(10) for token in store.chunk(number).tolist()] == stream
    assert kept(small_disk) == [".bin"] * 4
    assert not said
    del store
    for path in small_disk.glob("*/*.bin"):
        path.unlink()
    with open(small_disk / "other", "wb", buffering=0) as other, pytest.raises(OSError, match="No space"):
        while True:
            other.write(b"x" * 4096)
    store = opened(remote, small_disk, quota=2**40, warn=said.append)
    assert store.read(0, TOTAL).tolist() == stream
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert "storage.cache" in said[0]
    assert kept(small_disk) == []
    (small_disk / "other").unlink()
    assert store.cache is not None
    store.cache._memory.clear()
    store.drop_evicted()
    store.chunk(5)  # there is room again
    assert kept(small_disk) == [".bin"]


def test_disk_fills_in_the_middle_of_a_chunk(
    small_disk: Path, remote: str, stream: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By others; more of ours goes, and what has come already is not fetched again."""
    monkeypatch.setattr(chunk_file, "PIECE_BYTES", 8192)
    store = opened(remote, small_disk, quota=2**40)
    for number in range(3):
        store.chunk(number)
    fill, read = small_disk / "other", files.read_into
    asked = []

    def filling(path: str, at: int, target: memoryview) -> int:
        asked.append(at)
        if at > 20_000 and not fill.exists():
            with open(fill, "wb", buffering=0) as other, pytest.raises(OSError, match="No space"):
                while True:
                    other.write(b"x" * 4096)
        return read(path, at, target)

    monkeypatch.setattr(files, "read_into", filling)
    assert store.chunk(3).tolist() == stream[3 * CHUNK : 4 * CHUNK]
    assert sorted(asked) == list(range(0, 60_012, 8192))
    assert kept(small_disk) == [".bin"] * 3


@pytest.mark.parametrize("fault", ["a file in its place", "no rights"])
def test_no_cache_folder(
    tmp_path: Path, remote: str, stream: list[int], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = tmp_path / "c", []
    if fault == "no rights":
        monkeypatch.setattr(os, "makedirs", lambda *_, **__: os.mkdir("/proc/nothing"))
    else:
        folder.write_text("")
    store = opened(remote, folder, quota=2**40, warn=said.append)
    assert store.read(0, TOTAL).tolist() == stream
    assert len(said) == 1
    assert str(folder) in said[0]


def test_memory_is_bounded_too(tmp_path: Path, remote: str, stream: list[int]) -> None:
    (tmp_path / "c").write_text("")
    store = opened(remote, tmp_path / "c", quota=2**40, warn=lambda _: None)
    assert store.cache is not None
    store.cache._memory_bytes = 3 * SIZE
    for number in (*range(10), 0, 9):
        assert store.chunk(number).tolist() == stream[number * CHUNK : (number + 1) * CHUNK]
        assert len(store.cache._memory) <= 3
        store.drop_evicted()
        assert len(store._open) <= 3


# -- damage ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("fault", ["flip", "cut", "empty", "zeros", "other"])
def test_damaged_copy_is_dropped_and_brought_again(tmp_path: Path, stream: list[int], signed: bool, fault: str) -> None:
    url, said = make(tmp_path / "s", stream, signed=signed), []
    before = opened(url, tmp_path / "c")
    path = [Path(before.cache.open(before.chunks[number]).path) for number in (4, 5)]
    raw = bytearray(path[0].read_bytes())
    if fault == "flip":
        raw[20_000] ^= 1
    elif fault == "zeros":  # as after a power cut
        raw[8192:16384] = bytes(8192)
    new = {"cut": raw[:-100], "empty": b"", "other": path[1].read_bytes()[:-1]}.get(fault, raw)
    path[0].unlink()
    path[0].write_bytes(new)
    store = opened(url, tmp_path / "c", warn=said.append)
    assert store.chunk(4).tolist() == stream[4 * CHUNK : 5 * CHUNK]
    assert counters(store).damaged == counters(store).misses == 1
    assert len(said) == 1
    assert str(path[0]) in said[0]
    assert f"{url}/chunk-0-4.bin" in said[0]
    assert opened(url, tmp_path / "c").chunk(4).tolist() == stream[4 * CHUNK : 5 * CHUNK]


@pytest.mark.parametrize("fault", ["flip", "cut", "longer", "missing"])
def test_damage_in_the_store(tmp_path: Path, stream: list[int], fault: str) -> None:
    url = make(tmp_path / "s", stream)
    victim = tmp_path / "s" / "chunk-0-3.bin"
    raw = bytearray(victim.read_bytes())
    raw[900] ^= 16
    new = {"flip": raw, "cut": raw[:-2], "longer": raw + b"\0\0"}.get(fault)
    victim.unlink()
    if new is not None:
        victim.write_bytes(new)
    store = opened(url, tmp_path / "c")
    words = {"cut": "it is cut", "missing": "is missing"}.get(fault, "changed")
    with pytest.raises(CorruptError, match=rf"{url}/chunk-0-3\.bin .*{words}"):
        store.read(0, TOTAL)
    assert kept(tmp_path / "c") == [".bin"] * 3


def test_damage_on_the_way_heals(
    tmp_path: Path, remote: str, stream: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_file, "PIECE_BYTES", 8192)
    read, times = files.read_into, 0

    def damaging(path: str, at: int, target: memoryview) -> int:
        nonlocal times
        count = read(path, at, target)
        if at == 16384 and times < 2:
            times += 1
            target[77] ^= 4
        return count

    monkeypatch.setattr(files, "read_into", damaging)
    assert opened(remote, tmp_path).chunk(2).tolist() == stream[2 * CHUNK : 3 * CHUNK]
    assert times == 2


# -- clearing --------------------------------------------------------------------------------------------------------
def test_clear_spares_what_is_in_use(
    tmp_path: Path, remote: str, stream: list[int], children: list[subprocess.Popen[str]]
) -> None:
    unused = make(tmp_path / "unused", stream)
    opened(unused, tmp_path / "c").read(0, TOTAL)
    child = start(children, remote, tmp_path / "c", order=[0, 1])
    go(child)
    line(child)
    found = cache_files.sources(str(tmp_path / "c"))
    assert {(source.url, source.chunks, source.in_use) for source in found} == {(remote, 2, True), (unused, 10, False)}
    assert sum(source.bytes for source in found) == sum(entry.size for entry in cache_files.scan(str(tmp_path / "c")))
    freed, stayed = cache_files.remove_unused(str(tmp_path / "c"))
    assert freed == 10 * (12 + TRAILER_BYTES) + 2 * TOTAL
    assert stayed == [remote]
    assert kept(tmp_path / "c") == [".bin"] * 2
    child.kill()
    child.wait()
    assert cache_files.remove_unused(str(tmp_path / "c")) == (2 * SIZE, [])
    assert opened(remote, tmp_path / "c").read(0, TOTAL).tolist() == stream


def test_nobody_else_reads_it(tmp_path: Path, remote: str) -> None:
    opened(remote, tmp_path / "c").chunk(0)
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "c").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


def test_launch_cache(
    tmp_path: Path,
    remote: str,
    children: list[subprocess.Popen[str]],
    tokenizer_file: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Chunks by source and prepared text, and what a live process reads is spared."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = tmp_path / "launchyard" / "data" / ("0" * 32)
    (tmp_path / "a.txt").write_text("It was a bright cold day in April.\n" * 300)
    prepare([str(tmp_path / "a.txt")], tokenizer=tokenizer_file, out=str(text), validation=0.1)
    child = start(children, remote, Path(cache_files.default_folder()), order=[0, 1, 2])
    go(child)
    line(child)
    reading = TokenStore(f"{text}/train")
    reading.chunk(0)

    def told(*arguments: str) -> Any:
        return CliRunner().invoke(data.cache, arguments)

    said = told().output
    assert re.search(rf"{remote}: 3 chunks, 180 kB, in use", said)
    assert re.search(rf"{text}: a.txt, [0-9,]+ tokens, .*, in use", said)
    facts = json.loads(told("--json").output)
    assert facts["chunks"]["bytes"] == 3 * SIZE
    assert facts["chunks"]["quota"] > 3 * SIZE
    assert [entry["in_use"] for entry in (*facts["chunks"]["sources"], *facts["texts"])] == [True, True]
    cleared = json.loads(told("--clear", "--json").output)
    assert cleared == {"schema_version": 1, "freed": 0, "stayed": [remote, str(text)]}
    assert reading.read(0, 5).shape == (5,)
    del reading
    child.kill()
    child.wait()
    assert told("--clear").output.startswith("removed ")
    assert not text.exists()
    assert json.loads(told("--json").output)["chunks"]["sources"] == []


def test_verify_reads_past_the_cache(tmp_path: Path, stream: list[int]) -> None:
    url = make(tmp_path / "s", stream)
    store = opened(url, tmp_path / "c")
    store.chunk(2)
    raw = bytearray((tmp_path / "s" / "chunk-0-2.bin").read_bytes())
    raw[500] ^= 1
    (tmp_path / "s" / "chunk-0-2.bin").write_bytes(raw)
    store.verify(1)
    with pytest.raises(CorruptError, match=r"chunk-0-2\.bin is changed"):
        store.verify(2)
    assert kept(tmp_path / "c") == [".bin"]


# -- what is written down --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
def test_room_is_made_as_if_every_file_were_looked_at(tmp_path: Path, seed: int) -> None:
    """The same chunks go with what is written down and without, also where some were used since.

    What somebody removes without a word is counted until the next look: one more may go then, and none too few.
    """
    draw, quota = random.Random(seed), 12
    folders = [str(tmp_path / name) for name in ("noted", "looked")]
    sources = [cache_files.enter_source(folder, "s3://somewhere")[0] for folder in folders]
    for now in range(1, 25):
        size, used, lost = draw.randint(1, 4), draw.randint(1, now), seed == 3 and now % 5 == 0
        for folder, source, recount in zip(folders, sources, (False, True), strict=True):
            bring(folder, source, now, size, quota, recount)
            with contextlib.suppress(FileNotFoundError):
                os.utime(f"{source}/{used:02}.bin", (now + 0.5, now + 0.5))
            if lost:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{source}/{now - 1:02}.bin")
        mine, theirs = ({os.path.basename(one.path) for one in cache_files.scan(folder)} for folder in folders)
        assert seed == 3 or mine == theirs
        assert sum(one.size for one in cache_files.scan(folders[0])) <= quota


def bring(folder: str, source: str, number: int, size: int, quota: int, recount: bool) -> None:
    part, path = f"{source}/{number:02}.part", f"{source}/{number:02}.bin"
    file, mine = cache_files.lock_part(part, lambda: None)
    assert mine
    _, held = cache_files.reserve(folder, file, size, quota=quota, keep=(), urgent=True, recount=recount)
    assert sum(one.size for one in cache_files.scan(folder)) <= held
    cache_files.complete(folder, file, part, path)
    os.utime(path, (float(number), float(number)))
    os.close(file)


def test_a_cache_with_room_is_not_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = cache_files.enter_source(str(tmp_path), "s3://somewhere")
    bring(str(tmp_path), source, 0, 10, 1000, True)
    monkeypatch.setattr(cache_files, "scan", lambda folder: pytest.fail("it was scanned"))
    for number in range(1, 5):
        part = f"{source}/{number}.part"
        file, _ = cache_files.lock_part(part, lambda: None)
        assert cache_files.reserve(str(tmp_path), file, 10, quota=1000, keep=(), urgent=True) == (0, 10 * number + 10)
        os.close(file)
