"""Files here and in stores, by the same calls: what is written is read, one of many creates, faults are waited out.

The same invariants on a local folder, on fsspec's memory and on a real S3 server; what only a store can do to us goes
through a proxy of faults. With LAUNCHYARD_TEST_STORE=az://container they are put to another store as well.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launchyard.storage import files, options, retry
from launchyard.storage.errors import RefusedError, StoreError
from launchyard.storage.retry import RetryEvent
from launchyard.storage.stores import s3 as s3_store
from launchyard.storage.stores import s3_errors
from tests.support.faults import Answer, Flip, Reset, Slow, Stall, Truncate, lists, where

if TYPE_CHECKING:
    from tests.support.faultproxy import FaultProxy
    from tests.support.store import Bucket

PLACES = ["local", "memory", pytest.param("s3", marks=pytest.mark.s3)]
PLACES += [word for word in [os.environ.get("LAUNCHYARD_TEST_STORE", "")] if word]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder that does not exist yet."""
    if request.param == "local":
        yield str(tmp_path / "place")
    elif request.param == "memory":
        yield f"memory://{tmp_path.name}"
    elif "://" in request.param:
        yield f"{request.param}/{tmp_path.name}-{secrets.token_hex(4)}"
    else:
        bucket = request.getfixturevalue("s3")
        files.set_store_options(options.StoreOptions(endpoint_url=bucket.endpoint))
        yield f"{bucket.url}/place"


@pytest.fixture
def retries() -> Iterator[list[RetryEvent]]:
    heard: list[RetryEvent] = []
    unsubscribe = retry.subscribe(heard.append)
    yield heard
    unsubscribe()


# -- wherever it is ---------------------------------------------------------------------------------------------------
def test_what_is_written_is_there(place: str) -> None:
    for raw in (b"", b"a", bytes(range(256)) * 40):
        files.write(f"{place}/deep/er/file", raw)
        assert files.read(f"{place}/deep/er/file") == raw
        assert files.size(f"{place}/deep/er/file") == len(raw)
    assert files.exists(f"{place}/deep/er/file") and files.exists(f"{place}/deep")
    assert not files.exists(f"{place}/dee") and not files.exists(f"{place}/deep/er/file2")
    assert -1 <= files.age(f"{place}/deep/er/file") < 30
    listed = files.list_ages(f"{place}/deep/er")
    assert list(listed) == ["file"] and (listed["file"] is None or -1 <= listed["file"] < 30)
    assert files.list_ages(f"{place}/deep") == {"er": None} and not files.list_ages(f"{place}/none")


def test_what_is_not_there_is_said_and_removing_it_is_fine(place: str) -> None:
    for ask in (files.read, files.size, files.age):
        with pytest.raises(FileNotFoundError):
            ask(f"{place}/none")
    with pytest.raises(FileNotFoundError):
        files.read_into(f"{place}/none", 0, memoryview(bytearray(4)))
    files.remove(f"{place}/none")
    files.remove_folder(f"{place}/none")
    assert files.listdir(f"{place}/none") == []


def test_ranges(place: str) -> None:
    raw = bytes(range(256)) * 3
    files.write(f"{place}/f", raw)
    for start, length in [(0, None), (700, None), (0, 1), (767, 1), (5, 500), (760, 100), (768, 5), (900, 1), (3, 0)]:
        expected = raw[start : None if length is None else start + length]
        assert files.read(f"{place}/f", start, length) == expected
        if length is not None:
            target = bytearray(length)
            assert files.read_into(f"{place}/f", start, memoryview(target)) == len(expected)
            assert target[: len(expected)] == expected


def test_one_of_many_creates(place: str) -> None:
    """And what it wrote is there, whole; also when all begin at once."""
    for round_ in range(3):
        path, ready = f"{place}/claim-{round_}", threading.Barrier(12)

        def claim(number: int, path: str = path, ready: threading.Barrier = ready) -> int | None:
            ready.wait()
            try:
                files.create(path, b"%02d" % number * 500)
            except FileExistsError:
                return None
            return number

        with ThreadPoolExecutor(12) as pool:
            won = [number for number in pool.map(claim, range(12)) if number is not None]
        assert len(won) == 1
        assert files.read(path) == b"%02d" % won[0] * 500


def test_lists_and_removes_folders(place: str) -> None:
    for name in ("b", "a/1", "a/2/x", "ab"):
        files.write(f"{place}/{name}", b"x")
    assert files.listdir(place) == ["a", "ab", "b"]
    assert files.listdir(f"{place}/a") == ["1", "2"]
    assert files.usage(f"{place}/a") == (2, 2) and files.usage(f"{place}/none") == (0, 0)
    files.remove_folder(f"{place}/a")
    for name in ("a/1", "a/2/x"):
        with pytest.raises(FileNotFoundError):
            files.read(f"{place}/{name}")
    assert {"ab", "b"} <= set(files.listdir(place)), "and SeaweedFS shows empty folders for a while"


def test_removing_a_folder_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious").write_text("123")
    (tmp_path / "folder/in").mkdir(parents=True)
    (tmp_path / "folder/in/link").symlink_to(tmp_path / "other")
    (tmp_path / "to-folder").symlink_to(tmp_path / "folder")
    assert files.usage(str(tmp_path / "folder"))[0] <= 1, "what a link leads to is not counted"
    with pytest.raises(OSError, match="symbolic link"):
        files.remove_folder(str(tmp_path / "to-folder"))
    files.remove_folder(str(tmp_path / "folder"))
    assert sorted(os.listdir(tmp_path)) == ["other", "to-folder"]
    assert (tmp_path / "other/precious").exists()


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5 * 1000, 10 * 1000 + 17])
def test_files_that_grow_are_whole(place: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "UPLOAD_PART_BYTES", 5 << 20)  # the least that S3 allows
    raw = os.urandom(1000) * (size // 1000) + os.urandom(size % 1000)
    raw *= (5 << 20) // 2000 if size > 5000 else 1
    writer = files.open_write(f"{place}/grown", size=len(raw))
    at = 0
    for step in (1, 0, 700, 3000, 7 << 20, len(raw)):
        writer.write(memoryview(raw)[at : at + step])
        at += min(step, len(raw) - at)
    if place.startswith("s3") and size > 5000:
        assert not files.exists(f"{place}/grown"), "nothing is visible before its end"
    writer.close()
    assert files.size(f"{place}/grown") == len(raw)
    assert files.read(f"{place}/grown") == raw


def test_what_is_discarded_leaves_nothing(place: str) -> None:
    writer = files.open_write(f"{place}/grown")
    writer.write(b"x" * (17 << 20))
    writer.discard()
    if not place.startswith("memory"):  # where the name is there from the first byte on
        assert not files.exists(f"{place}/grown")
    assert files.sweep_uploads(place) == 0


# -- a real store -----------------------------------------------------------------------------------------------------
@pytest.mark.s3
def test_more_names_than_a_page_holds(s3: Bucket) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: files.write(f"{s3.url}/many/{n:04d}/f", b""), range(1203)))
    assert files.listdir(f"{s3.url}/many") == [f"{n:04d}" for n in range(1203)]


@pytest.mark.s3
def test_sweeping_ends_what_was_cut_short_and_nothing_else(s3: Bucket) -> None:
    for name in ("a/one", "a/two", "ab/other"):
        writer = files.open_write(f"{s3.url}/{name}")
        writer.write(b"x" * (17 << 20))
    files.write(f"{s3.url}/a/kept", b"x")
    assert len(s3.uploads()) == 3
    assert files.sweep_uploads(f"{s3.url}/a") == 2
    assert s3.uploads() == ["ab/other"] and s3.objects() == ["a/kept"]
    assert files.sweep_uploads(f"{s3.url}/ab") == 1


def _write_in_child(url: str, sent: Any) -> None:
    files.write(f"{url}/child", b"from the child")
    sent.put(files.read(f"{url}/parent"))


@pytest.mark.s3
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_reaches_the_store_too(s3: Bucket) -> None:
    files.write(f"{s3.url}/parent", b"from the parent")
    context = multiprocessing.get_context("fork")
    sent = context.Queue()
    child = context.Process(target=_write_in_child, args=(s3.url, sent))
    child.start()
    try:
        assert sent.get(timeout=60) == b"from the parent"
    finally:
        child.join(10)
        if child.is_alive():
            child.kill()
    assert files.read(f"{s3.url}/child") == b"from the child"


# -- a store that fails -----------------------------------------------------------------------------------------------
TRANSIENT = {
    "500": Answer(500),
    "503": Answer(503),
    "slow down": Answer(429, "TooManyRequests"),
    "request timeout": Answer(400, "RequestTimeout"),
    "expired": Answer(400, "ExpiredToken"),
    "403": Answer(403),
    "bucket gone": Answer(404, "NoSuchBucket"),
    "reset": Reset(up=0.5, down=0.5),
    "cut": Truncate(0.5),
    "cut and lied about": Truncate(0.5, lie=True),
    "answer lost": Answer(500, done=True),
}


@pytest.mark.s3
@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT.keys())
def test_what_passes_is_waited_out(fault: Any, s3: Bucket, proxy: FaultProxy, retries: list[RetryEvent]) -> None:
    """Each call, with one fault in each of its first two tries, does what it would have done without."""
    path, raw = f"{s3.url}/f", os.urandom(4000)
    files.write(path, raw)
    target = bytearray(1000)
    calls = {
        "write": lambda: files.write(path, raw),
        "create": lambda: files.create(f"{s3.url}/new", raw),
        "read": lambda: files.read(path) == raw,
        "read a range": lambda: files.read(path, 7, 1000) == raw[7:1007],
        "read into": lambda: files.read_into(path, 7, memoryview(target)) == 1000 and target == raw[7:1007],
        "size": lambda: files.size(path) == 4000,
        "list": lambda: "f" in files.listdir(s3.url),
        "exists": lambda: files.exists(path),
        "remove": lambda: files.remove(f"{s3.url}/new"),
    }
    for name, call in calls.items():
        rule = proxy.fault(fault, times=2)
        assert call() in (None, True), name
        rule.off()
    assert s3.get("f") == raw and s3.objects() == ["f"]
    assert any(event.over for event in retries)
    for event in retries:
        assert_reads_well(event.message)


@pytest.mark.s3
def test_a_bit_that_flips_on_the_way_up_is_refused_by_the_store(s3: Bucket, proxy: FaultProxy) -> None:
    """Not by us: botocore sends a checksum along, which the server holds against what came."""
    files.write(f"{s3.url}/f", b"before")
    put = proxy.requests(where(method="PUT"))[-1]
    assert any(name.startswith("x-amz-checksum") or name == "x-amz-trailer" for name in put.headers)


@pytest.mark.s3
def test_a_lost_answer_is_no_conflict_and_another_owner_is(s3: Bucket, proxy: FaultProxy) -> None:
    proxy.fault(Answer(500, done=True), where(method="PUT"), times=1)
    files.create(f"{s3.url}/claim", b"mine")
    proxy.fault(Answer(500, done=True), where(method="PUT"), times=1)
    with pytest.raises(FileExistsError):
        files.create(f"{s3.url}/claim", b"theirs")
    assert s3.get("claim") == b"mine"


@pytest.mark.s3
def test_a_lost_answer_to_the_end_of_an_upload(s3: Bucket, proxy: FaultProxy) -> None:
    proxy.fault(Answer(500, done=True), lambda request: request.completes, times=1)
    raw = os.urandom(1 << 20) * 17
    files.write(f"{s3.url}/large", raw)
    assert s3.get("large") == raw and s3.uploads() == []


@pytest.mark.s3
@pytest.mark.parametrize("fault", [Answer(503), Reset(up=0.5), Answer(500, done=True), Answer(403)], ids=repr)
def test_parts_are_sent_again(fault: Any, s3: Bucket, proxy: FaultProxy) -> None:
    rules = [proxy.fault(fault, where(part=part), times=2) for part in (1, 3)]
    raw = os.urandom(1 << 20) * 40
    files.write(f"{s3.url}/large", raw)
    assert [rule.hits for rule in rules] == [2, 2]
    assert s3.get("large") == raw and s3.uploads() == []


@pytest.mark.s3
def test_an_upload_that_fails_for_good_leaves_nothing_to_pay_for(s3: Bucket, proxy: FaultProxy) -> None:
    rule = proxy.fault(Answer(503), where(part=2))
    with retry.retry_budget(1), pytest.raises(StoreError, match="large: could not write"):
        files.write(f"{s3.url}/large", b"x" * (40 << 20))
    rule.off()
    assert s3.objects() == [] and s3.uploads() == []


# -- the retry budget -------------------------------------------------------------------------------------------------
@pytest.mark.s3
def test_a_spent_budget_ends_in_an_error(s3: Bucket, proxy: FaultProxy, retries: list[RetryEvent]) -> None:
    files.write(f"{s3.url}/f", b"x")
    proxy.fault(Answer(503))
    began = time.monotonic()
    with retry.retry_budget(2), pytest.raises(StoreError) as caught:
        files.read(f"{s3.url}/f")
    assert 0.8 < time.monotonic() - began < 10
    assert not isinstance(caught.value, PermissionError)
    assert_reads_well(str(caught.value), f"{s3.url}/f: could not read")
    assert len(retries) >= 2
    with retry.retry_budget(0), pytest.raises(StoreError):
        files.read(f"{s3.url}/f")
    assert len(proxy.requests(where(method="GET"))) == len(retries) + 2  # the last of each is the error itself


@pytest.mark.s3
def test_what_refuses_from_the_first_on_is_an_error_soon(s3: Bucket, proxy: FaultProxy) -> None:
    """A mistake, most likely; once the store has given something, it is a fault and waited for."""
    proxy.fault(Answer(403))
    began = time.monotonic()
    with retry.retry_budget(30), pytest.raises(RefusedError) as caught:
        files.read(f"{s3.url}/f")
    assert time.monotonic() - began < 10
    assert isinstance(caught.value, PermissionError)
    assert_reads_well(str(caught.value), "InvalidAccessKeyId")
    proxy.clear()
    files.write(f"{s3.url}/f", b"x")
    rule = proxy.fault(Answer(403))
    threading.Timer(4, rule.off).start()
    with retry.retry_budget(30):
        assert files.read(f"{s3.url}/f") == b"x"


@pytest.mark.s3
def test_no_bucket_is_not_no_file(s3: Bucket, proxy: FaultProxy) -> None:
    files.write(f"{s3.url}/f", b"x")
    assert files.exists(s3.url)
    for ask in (files.read, files.size, files.age, files.exists, files.listdir):
        with retry.retry_budget(3), pytest.raises(RefusedError, match=r"nobody/f: could not .*\(NoSuchBucket\)"):
            ask("s3://nobody/f")


@pytest.mark.s3
def test_renewed_credentials_are_read(
    s3: Bucket, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    secrets = tmp_path / "credentials"

    def write(secret: str) -> None:
        secrets.write_text(f"[p]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {secret}\n")

    write(s3.secret_key)
    files.set_store_options(
        options.StoreOptions(endpoint_url=proxy.endpoint, profile="p", credentials_file=str(secrets))
    )
    files.write(f"{s3.url}/f", b"x")
    write("expired")
    files.set_store_options(options.StoreOptions())
    files.set_store_options(
        options.StoreOptions(endpoint_url=proxy.endpoint, profile="p", credentials_file=str(secrets))
    )
    threading.Timer(2, write, [s3.secret_key]).start()
    with retry.retry_budget(600):
        assert files.read(f"{s3.url}/f") == b"x"
    assert {request.status for request in proxy.requests(where(method="GET"))} >= {403, 200}


@pytest.mark.s3
def test_a_call_ends_with_the_budget_of_its_caller(s3: Bucket, proxy: FaultProxy) -> None:
    """A store that hangs, or crawls, is not waited for much longer than was said; and nothing of the call goes on."""
    files.write(f"{s3.url}/f", b"x" * 100_000)
    for fault in (Stall(60), Slow(down=50)):
        rule = proxy.fault(fault)
        began = time.monotonic()
        with retry.retry_budget(1), pytest.raises(StoreError, match="no end after"):
            files.read(f"{s3.url}/f")
        assert time.monotonic() - began < 9
        rule.off()
    target = bytearray(100_000)
    rule = proxy.fault(Slow(down=50))
    with retry.retry_budget(1), pytest.raises(StoreError):
        files.read_into(f"{s3.url}/f", 0, memoryview(target))
    before = bytes(target)
    time.sleep(1)
    assert target == before, "who gave up gets no more bytes"


@pytest.mark.s3
def test_a_budget_that_is_shortened_ends_what_is_waiting(s3: Bucket, proxy: FaultProxy) -> None:
    files.write(f"{s3.url}/f", b"x")
    proxy.fault(Answer(503))
    retry.set_retry_budget(300)
    threading.Timer(1, retry.set_retry_budget, [2]).start()
    began = time.monotonic()
    with pytest.raises(StoreError):
        files.read(f"{s3.url}/f")
    assert time.monotonic() - began < 12


@pytest.mark.s3
def test_a_stale_listing_hides_no_file(s3: Bucket, proxy: FaultProxy) -> None:
    proxy.lag([])
    files.write(f"{s3.url}/f", b"x")
    assert files.exists(f"{s3.url}/f") and files.size(f"{s3.url}/f") == 1
    assert not any(map(lists, proxy.requests()))


def test_a_damaged_body_is_no_mistake_of_the_user() -> None:
    from botocore import exceptions as boto

    broken = boto.FlexibleChecksumError(error_msg="Expected checksum a did not match calculated checksum b")
    assert s3_errors.classify_s3(broken) == "transient"
    assert s3_errors.classify_s3(boto.ProfileNotFound(profile="p")) == "final"
    assert s3_errors.classify_s3(boto.NoCredentialsError()) == "refused"


@pytest.mark.s3
def test_a_flipped_bit_of_a_whole_object_is_found_on_the_way(s3: Bucket, proxy: FaultProxy) -> None:
    """Ranges carry no checksum: what is read in ranges has hashes of its own (shards, chunks)."""
    files.write(f"{s3.url}/f", b"x" * 100)
    for at in (0.0, 0.5, 1.0):
        rule = proxy.fault(Flip(at), where(method="GET"), times=1)
        assert files.read(f"{s3.url}/f") == b"x" * 100 and rule.hits == 1


def assert_reads_well(text: str, *words: str) -> None:
    """No noise of libraries, no secret, one sentence after another."""
    for noise in ("..", "botocore", "ClientError", "Errno", "operation:", "<", "Traceback", "only+secret", "\n"):
        assert noise not in text, text
    for word in words:
        assert word in text


def test_a_place_as_a_person_types_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~ is the home in every spelling; a variable is an error that says so, unless that is the very name of a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$HOME").touch()
    assert files.typed_path("~/a") == files.typed_path("file://~/a") == f"{tmp_path}/a"
    for same in ("a/b", "s3://b/~/x", "$HOME", "a$", "US$ 5", "https://h/a?$select=x", "-", "latest"):
        assert files.typed_path(same) == same
    for wrong in ("$HOME/a", "${HOME}/a", "a/$USER", "s3://$BUCKET/a", "~/${RUN}"):
        with pytest.raises(ValueError, match="variables are not expanded"):
            files.typed_path(wrong)
    with pytest.raises(ValueError, match="~none-such is the home of no user"):
        files.typed_path("~none-such/a")
