"""A store behind https, as most are: what arrives is what was sent; a certificate that nobody vouches for is named."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launchyard.storage import files
from launchyard.storage.errors import DeniedError
from launchyard.storage.options import StoreOptions
from launchyard.storage.retry import retry_budget
from launchyard.storage.stores import s3 as s3_store
from tests.support.certificates import make_certificate, server_context
from tests.support.faultproxy import FaultProxy
from tests.support.faults import Answer, Reset, where
from tests.support.store import Bucket

pytestmark = pytest.mark.s3
PART = 5 << 20  # the least that S3 allows


@pytest.fixture
def secure(s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    authority = make_certificate(tmp_path)
    with FaultProxy(s3.server.port, server_context(authority)) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
        files.set_store_options(StoreOptions(endpoint_url=between.endpoint))
        yield between


@pytest.mark.parametrize("fault", [None, Reset(down=0.5), Answer(500, done=True)], ids=repr)
def test_large_and_small_files(s3: Bucket, secure: FaultProxy, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "UPLOAD_PART_BYTES", PART)
    raw = random.Random(5).randbytes(3 * PART + 17)
    if fault:
        secure.fault(fault, where(part=2), times=1)
        secure.fault(fault, where(method="GET"), times=1)
    writer = files.open_write(f"{s3.url}/large", size=len(raw))
    at = 0
    for size in [1, 17, 2 * PART + 5, *[9_001] * 100, len(raw)]:
        writer.write(raw[at : at + size])
        at += size
    writer.close()
    files.write(f"{s3.url}/small", raw[:1000])
    assert s3.get("large") == raw and s3.get("small") == raw[:1000]
    assert files.read(f"{s3.url}/small") == raw[:1000]
    target = bytearray(2 * PART)
    assert files.read_into(f"{s3.url}/large", 100, memoryview(target)) == len(target)
    assert target == raw[100 : 100 + len(target)]


def test_each_body_has_a_checksum_that_the_store_holds_against_it(s3: Bucket, secure: FaultProxy) -> None:
    """The signature says nothing of a body here."""
    files.write(f"{s3.url}/small", b"text")
    files.write(f"{s3.url}/large", bytes(s3_store.UPLOAD_PART_BYTES + 1))
    bodies = secure.requests(where(method="PUT"))
    assert len(bodies) == 3
    assert all(any(name in put.headers for name in ("x-amz-trailer", "x-amz-checksum-crc32")) for put in bodies)


def test_a_certificate_of_an_unknown_authority(s3: Bucket, secure: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE")
    files.set_store_options(StoreOptions(endpoint_url=secure.endpoint))
    began = time.monotonic()
    with retry_budget(60), pytest.raises(DeniedError) as caught:
        files.read(f"{s3.url}/small")
    assert time.monotonic() - began < 30
    said = str(caught.value)
    assert "the store's certificate is not trusted here: self-signed certificate" in said and "AWS_CA_BUNDLE" in said
