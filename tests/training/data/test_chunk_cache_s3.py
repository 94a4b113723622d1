"""Chunks out of a real S3 server, through a proxy that spoils what it can."""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from pathlib import Path

import pytest

from launchyard.storage import retry
from launchyard.storage.errors import CorruptError
from launchyard.training.data import chunks as chunk_file
from launchyard.training.data.reader import Prefetcher, TokenReader
from tests.support.cached import CHUNK, TOTAL, children, counters, go, kept, line, make, opened, start, stream
from tests.support.faultproxy import FaultProxy
from tests.support.faults import Answer, Fault, Flip, Reset, Slow, Stall, Truncate, where
from tests.support.store import Bucket

__all__ = ["children", "stream"]
pytestmark = pytest.mark.s3
CHUNKS = where(method="GET", key=r"\.bin$")


@pytest.fixture
def remote(s3: Bucket, stream: list[int], tmp_path: Path) -> str:
    make(tmp_path / "local", stream)
    client = s3.server.client()
    for path in (tmp_path / "local").iterdir():
        client.put_object(Bucket=s3.name, Key=f"data/{path.name}", Body=path.read_bytes())
    client.close()
    return f"{s3.url}/data"


FAULTS: dict[str, Fault] = {
    "500": Answer(500),
    "503": Answer(503),
    "403": Answer(403),
    "reset": Reset(down=0.5),
    "truncated": Truncate(),
    "truncated with a length that fits": Truncate(lie=True),
    "flipped": Flip(),
    "stalled": Stall(1.0, "mid-body"),
    "slow": Slow(down=200_000.0),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_faults_on_the_way_heal(
    tmp_path: Path,
    remote: str,
    stream: list[int],
    proxy: FaultProxy,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunk_file, "PIECE_BYTES", 16384)
    store = opened(remote, tmp_path / "c")
    reader = TokenReader([store], seq_len=256, global_batch_size=12, shuffle=False)
    local = TokenReader([opened(str(tmp_path / "local"), tmp_path)], seq_len=256, global_batch_size=12, shuffle=False)
    rule = proxy.fault(fault, CHUNKS, times=6, skip=2)
    with Prefetcher(reader, stop_step=97) as feed:
        assert [samples.data_hash for _, samples in feed] == [local.batch(step).data_hash for step in range(97)]
    assert rule.hits == 6
    assert counters(store).misses == 10
    assert kept(tmp_path / "c") == [".bin"] * 10


def test_server_gone_and_back(tmp_path: Path, remote: str, stream: list[int], proxy: FaultProxy) -> None:
    store = opened(remote, tmp_path / "c")
    store.chunk(0)
    proxy.refuse()
    found: list[list[int]] = []

    def read() -> None:
        with retry.retry_budget(60):
            found.append(store.read(0, TOTAL).tolist())

    reading = threading.Thread(target=read)
    reading.start()
    time.sleep(3)
    assert reading.is_alive()
    proxy.accept()
    reading.join(30)
    assert found == [stream]


def test_damage_in_the_store_is_named(tmp_path: Path, remote: str, proxy: FaultProxy) -> None:
    """Read again a few times, since something on the way may have done it; then said."""
    store = opened(remote, tmp_path / "c")
    proxy.fault(Flip(), where(method="GET", key=r"chunk-0-3\.bin$"))
    with pytest.raises(CorruptError, match=rf"{remote}/chunk-0-3\.bin is changed"):
        store.read(0, TOTAL)
    assert len(proxy.requests(where(method="GET", key=r"chunk-0-3\.bin$"))) == chunk_file.READS
    assert kept(tmp_path / "c") == [".bin"] * 3


def test_workers_of_a_machine_ask_once(
    tmp_path: Path, remote: str, stream: list[int], proxy: FaultProxy, children: list[subprocess.Popen[str]]
) -> None:
    proxy.fault(Slow(down=500_000.0), CHUNKS)
    orders = [random.Random(number).sample(range(10), 10) for number in range(3)]
    for order in orders:
        start(children, remote, tmp_path / "c", order=order)
    for child in children:
        go(child)
    assert {json.loads(line(child))["total"] for child in children} == {sum(stream)}
    asked = [(request.key, request.range) for request in proxy.requests(CHUNKS)]
    pieces = -(-(12 + 2 * CHUNK + 1) // 8192) * 9 + -(-(12 + 2 * (TOTAL - 9 * CHUNK) + 1) // 8192)
    assert len(asked) == len(set(asked)) == pieces


def test_a_chunk_that_is_not_there(tmp_path: Path, remote: str, s3: Bucket) -> None:
    client = s3.server.client()
    client.delete_object(Bucket=s3.name, Key="data/chunk-0-7.bin")
    client.close()
    store = opened(remote, tmp_path / "c")
    with pytest.raises(CorruptError, match=rf"{remote}/chunk-0-7\.bin is missing"):
        store.chunk(7)
