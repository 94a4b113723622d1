"""Parts of an upload share memory, one after the other: what arrives is what was written, whatever fails between."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.storage import files
from launchyard.storage.stores import s3 as s3_store
from launchyard.storage.stores.fsspec import ScatterBuffer
from tests.support.faultproxy import FaultProxy
from tests.support.faults import Answer, Reset, Slow, where
from tests.support.store import Bucket

PART = 5 << 20  # the least that S3 allows


@pytest.mark.s3
@pytest.mark.parametrize("fault", [None, Reset(up=0.5), Answer(500, done=True), Slow(up=4 << 20)], ids=repr)
def test_memory_that_serves_again_keeps_every_part(
    s3: Bucket, proxy: FaultProxy, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_store, "UPLOAD_PART_BYTES", PART)
    raw = random.Random(7).randbytes(13 * PART + 17)
    for part in (1, 2, 5, 7, 12, 14) if fault else ():
        proxy.fault(fault, where(part=part), times=1)
    writer = files.open_write(f"{s3.url}/parts", size=len(raw))
    memory = bytearray(3 << 20)
    for at in range(0, len(raw), len(memory)):
        piece = raw[at : at + len(memory)]
        memory[: len(piece)] = piece  # the writer's caller uses its own memory again too
        writer.write(memoryview(memory)[: len(piece)])
    writer.close()
    assert s3.get("parts") == raw
    assert s3.uploads() == []


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
