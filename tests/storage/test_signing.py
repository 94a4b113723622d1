"""What is sent with the body of an upload: a checksum that the store compares, computed once."""

from __future__ import annotations

from typing import Any

import pytest

from launchyard.storage.options import StoreOptions
from launchyard.storage.stores.s3 import S3Store


def headers_of_a_put(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of a request that is made and not sent."""
    for name, value in {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "only-here"}.items():
        monkeypatch.setenv(name, value)
    store = S3Store(StoreOptions(endpoint_url="http://127.0.0.1:9", region="us-east-1"))
    seen: dict[str, str] = {}

    def refuse(request: Any, **_: object) -> None:
        seen.update({name.lower(): _text(value) for name, value in request.headers.items()})
        raise ConnectionRefusedError

    async def put() -> None:
        client = await store._fs.set_session()
        client.meta.events.register("before-send.s3.PutObject", refuse)
        await client.put_object(Bucket="bucket", Key="key", Body=b"body")

    with pytest.raises(ConnectionRefusedError):
        store._run(put(), 30)
    return seen


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def test_a_body_goes_with_its_crc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION", raising=False)
    sent = headers_of_a_put(monkeypatch)
    assert sent["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert "x-amz-checksum-crc32" in sent["authorization"], "it is signed"
    assert sent["x-amz-checksum-crc32"]


def test_a_body_without_a_crc_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    sent = headers_of_a_put(monkeypatch)
    assert "x-amz-checksum-crc32" not in sent
    assert len(sent["x-amz-content-sha256"]) == 64
