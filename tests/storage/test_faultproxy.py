"""The proxy does what it says, to the client that trains: else the tests of faults would prove nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from launchyard.storage import files, retry
from tests.support.faultproxy import FaultProxy
from tests.support.faults import Answer, Fault, Flip, Reset, Slow, Stall, Truncate, lists, snapshot, where
from tests.support.store import Bucket

pytestmark = pytest.mark.s3
BODY = os.urandom(3_000_000)


@pytest.fixture
def client(s3: Bucket, proxy: FaultProxy) -> Iterator[Any]:
    """Plain, through the proxy, and it tries once."""
    made = s3.server.client(proxy.endpoint)
    yield made
    made.close()


@pytest.fixture
def get(client: Any, s3: Bucket) -> Callable[[], bytes]:
    s3.put("k", BODY)

    def read() -> bytes:
        with client.get_object(Bucket=s3.name, Key="k")["Body"] as body:
            return bytes(body.read())

    return read


def test_signed_requests_pass_and_are_logged(s3: Bucket, proxy: FaultProxy) -> None:
    files.write(f"{s3.url}/a/k", BODY)
    assert files.read(f"{s3.url}/a/k", 10, 20) == BODY[10:30]
    files.create(f"{s3.url}/a/once", b"1")
    with pytest.raises(FileExistsError):
        files.create(f"{s3.url}/a/once", b"2")
    assert files.listdir(f"{s3.url}/a") == ["k", "once"]
    assert s3.get("a/k") == BODY
    (read,) = proxy.requests(where(method="GET", key="^a/k$"))
    assert (read.range, read.status, read.bytes_down) == ("bytes=10-29", 206, 20)
    (written,) = proxy.requests(where(method="PUT", key="^a/k$"))
    assert (written.bucket, written.status, written.bytes_up) == (s3.name, 200, len(BODY))
    assert [request.status for request in proxy.requests(where(key="once", method="PUT"))] == [200, 412]


@pytest.mark.parametrize("status", [500, 503, 403, 404])
def test_errors_are_s3s_own(client: Any, s3: Bucket, proxy: FaultProxy, status: int) -> None:
    from botocore.exceptions import ClientError

    rule = proxy.fault(Answer(status), times=1)
    with pytest.raises(ClientError) as caught:
        client.put_object(Bucket=s3.name, Key="k", Body=BODY)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert caught.value.response["Error"]["Code"] == rule_code(rule.fault)
    assert s3.objects() == []
    client.put_object(Bucket=s3.name, Key="k", Body=BODY)
    assert s3.get("k") == BODY


def rule_code(fault: Fault | None) -> str:
    from tests.support.faults import CODES

    assert isinstance(fault, Answer)
    return CODES[fault.status]


def test_an_answer_can_be_lost_when_all_was_done(client: Any, s3: Bucket, proxy: FaultProxy) -> None:
    from botocore.exceptions import ClientError

    proxy.fault(Answer(500, done=True), times=1)
    with pytest.raises(ClientError):
        client.put_object(Bucket=s3.name, Key="k", Body=BODY)
    assert s3.get("k") == BODY


@pytest.mark.parametrize("fault", [Reset(down=0.5), Reset(down=0.0), Truncate(0.5)], ids=str)
def test_a_body_that_is_cut_is_noticed(get: Callable[[], bytes], proxy: FaultProxy, fault: Fault) -> None:
    from botocore.exceptions import BotoCoreError
    from urllib3.exceptions import HTTPError

    proxy.fault(fault, times=1)
    with pytest.raises((BotoCoreError, HTTPError)):
        get()
    assert get() == BODY


@pytest.mark.parametrize(
    ("fault", "said"),
    [(Truncate(0.5, lie=True), BODY[:1_500_000]), (Flip(0.5), BODY[:1_500_000] + bytes([BODY[1_500_000] ^ 1]))],
    ids=["lie", "flip"],
)
def test_a_lie_is_not_noticed_by_the_client(
    get: Callable[[], bytes], proxy: FaultProxy, fault: Fault, said: bytes
) -> None:
    proxy.fault(fault, times=1)
    raw = get()
    assert raw.startswith(said) and raw != BODY
    assert get() == BODY


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_upload_that_is_cut_leaves_nothing(client: Any, s3: Bucket, proxy: FaultProxy, share: float) -> None:
    from botocore.exceptions import BotoCoreError

    proxy.fault(Reset(up=share), where(method="PUT"), times=1)
    with pytest.raises(BotoCoreError):
        client.put_object(Bucket=s3.name, Key="k", Body=BODY)
    (cut,) = proxy.requests(where(method="PUT"))
    assert cut.bytes_up == int(share * len(BODY))
    assert share == 1.0 or s3.objects() == []


def test_slow_and_stalled(get: Callable[[], bytes], client: Any, s3: Bucket, proxy: FaultProxy) -> None:
    rule = proxy.fault(Slow(up=3_000_000, down=6_000_000))
    assert 0.4 < timed(get) < 2.0
    assert 0.8 < timed(lambda: client.put_object(Bucket=s3.name, Key="k2", Body=BODY)) < 3.0
    rule.off()
    proxy.fault(Stall(0.5, "mid-body"), where(method="GET"), times=1)
    assert 0.5 < timed(get) < 2.0


def timed(action: Callable[[], Any]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def test_gone_and_back(get: Callable[[], bytes], proxy: FaultProxy) -> None:
    from botocore.exceptions import BotoCoreError

    assert get() == BODY
    proxy.refuse()
    for _ in range(2):
        with pytest.raises(BotoCoreError):
            get()
    proxy.accept()
    assert get() == BODY


def test_listings_that_lag(s3: Bucket, proxy: FaultProxy) -> None:
    for key in ("a/1", "a/b/2", "c"):
        s3.put(key, b"x")
    client = s3.server.client()
    try:
        proxy.lag(snapshot(client, s3.name))
    finally:
        client.close()
    s3.put("a/new", b"x")
    files.remove(f"{s3.url}/c")
    assert files.listdir(f"{s3.url}/a") == ["1", "b"]
    assert files.listdir(s3.url) == ["a", "c"]
    assert proxy.requests(lists)
    proxy.clear()
    assert files.listdir(f"{s3.url}/a") == ["1", "b", "new"]


def test_hooks_come_when_they_should(client: Any, s3: Bucket, proxy: FaultProxy) -> None:
    seen: list[tuple[str, bool, int]] = []

    def note(name: str) -> Callable[[Any], None]:
        return lambda request: seen.append((name, "k" in s3.objects(), request.bytes_up))

    proxy.on(where(method="PUT"), "before", note("before"))
    proxy.on(where(method="PUT"), "mid-body", note("mid-body"))
    proxy.on(where(method="PUT"), "after", note("after"))
    client.put_object(Bucket=s3.name, Key="k", Body=BODY)
    assert [(name, there) for name, there, _ in seen] == [("before", False), ("mid-body", False), ("after", True)]
    assert len(BODY) / 2 <= seen[1][2] < len(BODY) * 0.6


def test_the_second_part_of_an_upload(s3: Bucket, proxy: FaultProxy) -> None:
    halfway: list[float] = []
    raw = BODY * 14
    proxy.on(where(part=2), "mid-body", lambda request: halfway.append(request.bytes_up))
    rule = proxy.fault(Answer(503), where(part=1), times=2)
    with retry.retry_budget(20):
        files.write(f"{s3.url}/large", raw)
    assert s3.get("large") == raw
    assert len(halfway) == 1 and rule.hits == 2
    assert [request.part for request in proxy.requests(where(part=1))] == [1, 1, 1]


def test_rules_count_and_skip(client: Any, s3: Bucket, proxy: FaultProxy) -> None:
    from botocore.exceptions import ClientError

    rule = proxy.fault(Answer(500), where(method="HEAD"), skip=1, times=1)
    s3.put("k", b"")
    client.head_object(Bucket=s3.name, Key="k")
    with pytest.raises(ClientError):
        client.head_object(Bucket=s3.name, Key="k")
    client.head_object(Bucket=s3.name, Key="k")
    assert rule.hits == 1


def test_a_server_that_is_gone_is_waited_for(s3: Bucket, proxy: FaultProxy) -> None:
    proxy.refuse()
    with retry.retry_budget(0.5), pytest.raises(OSError, match=r"could not write.*Is the store up"):
        files.write(f"{s3.url}/k", BODY)
    timer = threading.Timer(1.0, proxy.accept)
    timer.start()
    with retry.retry_budget(20):
        files.write(f"{s3.url}/k", BODY)
    timer.join()
    assert s3.get("k") == BODY
