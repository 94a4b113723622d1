"""Parts of an upload are sent from where they lie: what arrives is what was written, whatever fails between."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.storage import files
from launchyard.storage.stores import s3 as s3_store
from launchyard.storage.stores.fsspec import ScatterBuffer
from launchyard.storage.stores.s3_parts import UploadBody
from tests.support.faultproxy import FaultProxy
from tests.support.faults import Answer, Reset, Slow, where
from tests.support.store import Bucket

PART = 5 << 20  # the least that S3 allows


@pytest.mark.s3
@pytest.mark.parametrize("fault", [None, Reset(up=0.5), Answer(500, done=True), Slow(up=4 << 20)], ids=repr)
def test_every_part_arrives_from_wherever_it_lies(
    s3: Bucket, proxy: FaultProxy, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_store, "UPLOAD_PART_BYTES", PART)
    raw = random.Random(7).randbytes(13 * PART + 17)
    for part in (1, 2, 5, 7, 12, 14) if fault else ():
        proxy.fault(fault, where(part=part), times=1)
    writer = files.open_write(f"{s3.url}/parts", size=len(raw))
    at = 0
    for size in [1, 3 << 20, 0, 17, 2 * PART + 5, *[9_001] * 300, len(raw)]:
        writer.write(memoryview(bytearray(raw[at : at + size])))
        at += size
    writer.close()
    assert s3.get("parts") == raw
    assert s3.uploads() == []


@pytest.mark.s3
def test_the_hash_that_signs_a_part_is_its_only_one(
    s3: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_store, "UPLOAD_PART_BYTES", PART)
    raw = random.Random(7).randbytes(2 * PART)
    files.write(f"{s3.url}/large", raw)
    files.write(f"{s3.url}/small", raw[:9])
    parts = proxy.requests(where(method="PUT", key="large"))
    hashes = [hashlib.sha256(half).hexdigest() for half in (raw[:PART], raw[PART:])]
    assert sorted(part.headers["x-amz-content-sha256"] for part in parts) == sorted(hashes)
    assert not any("checksum" in name for part in parts for name in part.headers)
    (small,) = proxy.requests(where(method="PUT", key="small"))
    assert "x-amz-checksum-crc32" in small.headers  # it is kept, and read by it


_READS = st.lists(st.tuples(st.sampled_from(["read", "seek", "end"]), st.integers(0, 20)), max_size=9)


@given(st.lists(st.binary(max_size=9), max_size=8), _READS)
def test_a_body_is_a_file_of_all_its_pieces(pieces: list[bytes], calls: list[tuple[str, int]]) -> None:
    ours, theirs = UploadBody(list(map(memoryview, pieces))), io.BytesIO(b"".join(pieces))
    assert len(ours) == len(theirs.getvalue())
    for name, number in calls:
        if name == "read":
            assert ours.read(number) == theirs.read(number)
        elif name == "seek":
            assert ours.seek(min(number, len(ours))) == theirs.seek(min(number, len(ours)))
        else:
            assert ours.seek(0, io.SEEK_END) == theirs.seek(0, io.SEEK_END)
        assert ours.tell() == theirs.tell()
    assert ours.read() == theirs.read()

    async def sent() -> bytes:
        return b"".join([piece async for piece in ours])

    assert asyncio.run(sent()) == asyncio.run(sent()) == theirs.getvalue()


@pytest.mark.s3
@pytest.mark.parametrize("sizes", [[5], [0, 3, 0, 1 << 20, 7], [1] * 40])
def test_one_request_fills_several_places(s3: Bucket, proxy: FaultProxy, sizes: list[int]) -> None:
    raw = random.Random(1).randbytes(sum(sizes) + 9)
    files.write(f"{s3.url}/f", raw)
    targets = [bytearray(size) for size in sizes]
    assert files.read_into(f"{s3.url}/f", 4, *map(memoryview, targets)) == sum(sizes)
    assert b"".join(targets) == raw[4 : 4 + sum(sizes)]
    assert len(proxy.requests(where(method="GET", key="f"))) == 1


@given(st.lists(st.integers(0, 9), max_size=6), st.lists(st.binary(max_size=9), max_size=8))
def test_a_scatter_buffer_is_filled_from_the_front(sizes: list[int], raws: list[bytes]) -> None:
    targets = [bytearray(size) for size in sizes]
    buffer, taken = ScatterBuffer([memoryview(target) for target in targets]), b""
    for raw in raws:
        if len(taken) + len(raw) > sum(sizes):
            with pytest.raises(ValueError, match="asked for"):
                buffer.write(raw)
            break
        buffer.write(raw)
        taken += raw
    assert buffer.count == len(taken) and b"".join(targets)[: len(taken)] == taken
    assert not any(b"".join(targets)[len(taken) :])
