"""Small chunks in a store, and processes that read them through a cache. local:// is a store that processes share."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from launchyard.training.data.cache.chunk_cache import TRAILER_BYTES, ChunkCache
from launchyard.training.data.index import ChunkDigest, Digests
from launchyard.training.data.token_store import TokenStore
from tests.support.litdata_reader import write_chunks

CHUNK, TOTAL = 30_000, 295_003
SIZE = 12 + 2 * CHUNK + TRAILER_BYTES  # in the cache


@pytest.fixture(scope="module")
def stream() -> list[int]:
    return random.Random(1).choices(range(60_000), k=TOTAL)


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory, stream: list[int]) -> str:
    """The URL of ten chunks with digests."""
    return make(tmp_path_factory.mktemp("store") / "train", stream)


def make(place: Path, stream: list[int], *, signed: bool = True) -> str:
    write_chunks(place, stream, chunk=CHUNK)
    if signed:
        digests = {}
        for entry in json.loads((place / "index.json").read_text())["chunks"]:
            raw = (place / entry["filename"]).read_bytes()
            xxh3 = xxhash.xxh3_64_hexdigest(raw)
            digests[entry["filename"]] = ChunkDigest(bytes=len(raw), tokens=entry["dim"], xxh3=xxh3)
        (place / "digests.json").write_text(Digests(chunks=digests).model_dump_json())
    return f"local://{place}"


def opened(url: str, folder: Path, **options: Any) -> TokenStore:
    return TokenStore(url, cache=ChunkCache(str(folder), **options))


def kept(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.glob("*/*.*"))


def counters(store: TokenStore) -> Any:
    assert store.cache is not None
    return store.cache.counters


CHILD = """
import json, os, signal, sys, time
from launchyard.storage import files
from launchyard.training.data import chunks; from launchyard.training.data.cache import cache_files as room
from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.prepare.prepare import prepare
from launchyard.training.data.token_store import TokenStore

url, folder, quota, order, slow, hang = json.loads(sys.argv[1])
chunks.PIECE_BYTES = 8192
read_into = files.read_into

def slowly(path, start, target):
    if hang and start == 16384:
        print("half way", flush=True)
        time.sleep(600)
    time.sleep(slow)
    return read_into(path, start, target)

files.read_into = slowly
store = TokenStore(url, cache=ChunkCache(folder, quota=quota))
print("ready", flush=True)
sys.stdin.readline()
total = 0
for number in order:
    total += int(store.chunk(number).sum(dtype="int64"))
print(json.dumps(vars(store.cache.counters) | {"total": total}), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def start(
    children: list[subprocess.Popen[str]],
    url: str,
    folder: Path,
    *,
    quota: int = 2**40,
    order: list[int],
    slow: float = 0.0,
    hang: bool = False,
) -> subprocess.Popen[str]:
    facts = json.dumps([url, str(folder), quota, order, slow, hang])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, facts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    children.append(child)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()
