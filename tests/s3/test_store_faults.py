"""A store that fails while a run works in it: what the run does, what it says, and that nothing is lost or taken wrong.

Each fault comes from between real workers and a real server, for seconds; the literal minutes are marked slow.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from typing import Any

import pytest

from launchyard.run.checkpoints import committed_steps
from tests.s3.runs import BEGUN, EVERY, PLACES, STEPS, Remote, Spell, wait_for
from tests.support.faultproxy import FaultProxy
from tests.support.faults import Answer, Flip, Reset, Slow, Stall, Truncate, snapshot, where

pytestmark = pytest.mark.s3

FAULTS: dict[str, Any] = {
    "500": Answer(500),
    "503": Answer(503),
    "403": Answer(403),
    "bucket gone": Answer(404, "NoSuchBucket"),
    "reset": Reset(up=0.5, down=0.5),
    "cut": Truncate(0.5),
    "cut and lied about": Truncate(0.5, lie=True),
    "slow": Slow(up=60_000, down=2_000),
    "stall": Stall(2.0),
    "answers lost": Answer(500, done=True),
    "flipped": Flip(),
}
SHORT = {"503", "cut and lied about"}
SECONDS, LONG_SECONDS = 0.7, 2.6  # of each fault at each place, and at one: trouble is said after two


# -- every place in turn ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, id=name, marks=() if name in SHORT else pytest.mark.slow) for name, fault in FAULTS.items()],
)
def test_each_fault_at_each_place(remote: Remote, proxy: FaultProxy, fault: Any) -> None:
    """The attempt waits each of them out, says so, and comes to what it would have come to."""
    rules = {}
    for place, (method, key) in PLACES.items():
        seconds = LONG_SECONDS if place == "upload" else SECONDS
        times = 1 if isinstance(fault, (Flip, Slow)) else None  # a piece is asked for three times, then it is damaged
        rules[place] = proxy.fault(fault, Spell(method, key, seconds), times=times)
    remote.train()
    asked = {place for place, rule in rules.items() if rule.hits}
    assert asked >= set(PLACES) - {"index"}
    remote.is_exact()
    remote.is_whole()
    if not isinstance(fault, (Flip, Slow, Stall, Truncate)):  # those are over soon, or change nothing of an upload
        said = remote.events("store trouble", "store answers again")
        assert {event["event"] for event in said} == {"store trouble", "store answers again"}
        for event in said:
            for noise in ("..", "botocore", "Errno", "<", remote.bucket.secret_key):
                assert noise not in event["message"]


@pytest.mark.parametrize("nproc", [2])
def test_several_workers_wait_for_the_one_in_trouble(remote: Remote, proxy: FaultProxy, nproc: int) -> None:
    proxy.fault(Answer(503), Spell("PUT", r"rank-00001\.safetensors$", 4))
    proxy.fault(Answer(503), Spell("GET", r"train/.*\.bin$", 4))
    remote.train(nproc)
    remote.is_whole()
    assert [row["step"] for row in remote.run.rows("steps")] == list(range(1, STEPS + 1))
    assert [row["data_hash"] for row in remote.run.rows("steps")] == [row[-1] for row in remote.origin.rows]


# -- what waits for what ----------------------------------------------------------------------------------------------
def test_no_step_waits_for_rows(remote: Remote, proxy: FaultProxy) -> None:
    rows = Spell("PUT", r"metrics/steps-", 8)
    proxy.fault(Answer(503), rows)
    remote.train(overrides={"checkpoint.every_steps": None})
    assert rows.began is not None
    mine = [row for row in remote.run.rows("steps") if row["attempt"] == 1]
    assert len(mine) == STEPS - committed_steps(remote.origin.begun)[-1]
    assert mine[-1]["time"] - mine[0]["time"] < 5, "while they were held up for 8 s"
    assert not any(row["step_seconds"] > 2 for row in mine)
    remote.is_exact()


def test_steps_go_on_while_a_save_is_held_up_and_wait_at_the_next(remote: Remote, proxy: FaultProxy) -> None:
    uploads = Spell("PUT", r"\.safetensors$", 6)
    proxy.fault(Answer(503), uploads)
    remote.train()
    assert uploads.began is not None
    mine = {row["step"]: row["time"] for row in remote.run.rows("steps") if row["attempt"] == 1}
    first = committed_steps(remote.origin.begun)[-1]
    saved = next(step for step in range(first + 1, STEPS) if step % EVERY == 0)
    assert mine[saved + EVERY] - mine[saved] < 4, "the steps up to the next save were made meanwhile"
    assert mine[saved + EVERY + 1] - mine[saved] > 4, "and the save after it waited for the one before"
    remote.is_exact()
    remote.is_whole()


def test_a_save_that_fails_for_good_is_said_and_a_later_one_works(remote: Remote, proxy: FaultProxy) -> None:
    remote.set_retry_seconds(1.5)
    first, second = (step for step in range(STEPS - 2 * EVERY, STEPS, EVERY))
    proxy.fault(Answer(503), where(method="PUT", key=rf"step-{first:08d}/.*\.safetensors$"))
    proxy.fault(Answer(503), where(method="PUT", key=rf"step-{second:08d}/manifest\.json$"))
    remote.train()
    failed = {event["step"]: event["message"] for event in remote.events("save failed")}
    assert set(failed) == {first, second}
    for step, name in ((first, ".safetensors: could not write"), (second, "manifest.json: could not create")):
        assert f"step-{step:08d}" in failed[step] and name in failed[step]
    assert STEPS in {event["step"] for event in remote.events("saved")}
    remote.is_exact()
    remote.is_whole()


def test_a_bucket_where_nobody_may_delete_or_list_uploads(remote: Remote, proxy: FaultProxy) -> None:
    """Nothing that only cleans up is needed; that it is not done is said once in the attempt."""
    proxy.fault(Answer(403, "AccessDenied"), lambda request: request.method == "GET" and "uploads" in request.query)
    removals = proxy.fault(
        Answer(403, "AccessDenied"), lambda request: request.method == "DELETE" and "uploadId" not in request.query
    )
    remote.set_retry_seconds(900)
    began = time.monotonic()
    remote.train(overrides={"checkpoint.keep": 1})
    assert time.monotonic() - began < 60
    remote.is_exact()
    messages = {event["what"]: event["message"] for event in remote.events("cleanup failed")}
    assert len(messages) == len(remote.events("cleanup failed")) == 2 and removals.hits == 1
    assert "s3:ListBucketMultipartUploads" in messages["uploads that were cut short"]
    assert "s3:DeleteObject" in messages["old checkpoints"]


def test_a_final_save_that_cannot_be_made_loses_no_run(remote: Remote, proxy: FaultProxy) -> None:
    remote.set_retry_seconds(1.5)
    rule = proxy.fault(Answer(503), where(method="PUT", key=r"\.safetensors$"))
    before = committed_steps(remote.run)
    remote.start()
    assert remote.wait() == [1]
    (error,) = remote.run.errors(remote.attempt)
    assert (error["type"], error["fatal"]) == ("StoreError", False)
    assert "could not write" in error["message"]
    assert committed_steps(remote.run) == before
    assert [event["step"] for event in remote.events("save failed")][-1] == STEPS
    rule.off()
    remote.train()
    remote.is_exact()
    remote.is_whole()


def test_a_store_that_is_away_at_a_resume_is_no_damage(remote: Remote, proxy: FaultProxy) -> None:
    """Going back to an older checkpoint, or to the beginning, would be a loss for nothing."""
    remote.set_retry_seconds(1.5)
    rule = proxy.fault(Answer(503), where(method="GET", key=r"manifest\.json$|\.safetensors$"))
    remote.start()
    assert remote.wait() == [1]
    (error,) = remote.run.errors(remote.attempt)
    assert (error["type"], error["fatal"]) == ("StoreError", False)
    assert not remote.saw_event("fell back", "started")
    rule.off()
    remote.train()
    remote.is_exact()


def test_a_listing_that_lags_hides_nothing(remote: Remote, proxy: FaultProxy) -> None:
    """Neither the newest checkpoint, nor the attempt that is under way."""
    client = remote.bucket.server.client()
    try:
        shown = [one for one in snapshot(client, remote.bucket.name) if "checkpoints/" not in one.key]
    finally:
        client.close()
    proxy.lag(shown)
    remote.train()
    (started,) = remote.events("started")
    assert started["step"] == committed_steps(remote.origin.begun)[-1] >= BEGUN
    proxy.lag(None)
    remote.is_exact()


def test_a_stop_is_heard_while_no_data_comes(remote: Remote, proxy: FaultProxy) -> None:
    proxy.fault(Answer(503), where(method="GET", key=r"train/.*\.bin$"))
    remote.start(2)
    wait_for(lambda: remote.saw_event("started"))
    time.sleep(1)
    asked = time.monotonic()
    for process in remote.processes:
        process.send_signal(signal.SIGUSR1)
    assert remote.wait(60) == [0, 0]
    assert time.monotonic() - asked < 25
    record = remote.run.outcome(remote.attempt)
    assert record is not None and (record.outcome, record.reason) == ("stopped", "preempted")
    proxy.clear()
    remote.train()
    remote.is_exact()


# -- the server itself ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        ("killed", 5),
        ("frozen", 5),
        pytest.param("killed", 120, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
        pytest.param("frozen", 120, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
def test_a_server_that_goes_and_comes_back(remote: Remote, proxy: FaultProxy, kind: str, seconds: float) -> None:
    """From the middle of the first upload on."""
    remote.set_retry_seconds(900)
    server, uploading = remote.bucket.server, threading.Event()
    proxy.on(where(method="PUT", key=r"\.safetensors$"), "mid-body", lambda _: uploading.set())
    remote.start()
    assert uploading.wait(60)
    server.kill() if kind == "killed" else server.freeze()
    try:
        time.sleep(seconds)
    finally:
        server.start() if kind == "killed" else server.thaw()
    assert remote.wait() == [0]
    remote.is_exact()
    remote.is_whole()
    if seconds > 10:
        assert remote.saw_event("store trouble") and remote.saw_event("store answers again")


MINUTE: dict[str, Any] = {
    "503": Answer(503),
    "403": Answer(403),
    "5 kB/s": Slow(up=5_000, down=5_000),
    "stalls": Stall(60),
    "bucket gone": Answer(404, "NoSuchBucket"),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", MINUTE.values(), ids=MINUTE.keys())
def test_a_minute_of_it_everywhere(remote: Remote, proxy: FaultProxy, fault: Any) -> None:
    """From the first upload on, whatever is asked."""
    remote.set_retry_seconds(900)
    began: list[float] = []
    proxy.on(where(method="PUT", key=r"\.safetensors$"), "before", lambda _: began.append(time.monotonic()))
    rule = proxy.fault(fault, lambda request: bool(began) and time.monotonic() - began[0] < 60)
    remote.start()
    assert remote.wait(600) == [0]
    assert rule.hits
    remote.is_exact()
    remote.is_whole()


# -- the bucket -------------------------------------------------------------------------------------------------------
def test_a_bucket_that_is_deleted_and_brought_back(remote: Remote, proxy: FaultProxy) -> None:
    """With all that was in it, as from a backup: what came back is gone on from."""
    client, name = remote.bucket.server.client(), remote.bucket.name
    saved: dict[str, bytes] = {}
    gone = threading.Event()

    def delete(_: Any) -> None:
        for key in remote.bucket.objects():
            with contextlib.suppress(client.exceptions.NoSuchKey):  # removed since it was listed
                saved[key] = remote.bucket.get(key)
        for key in saved:
            client.delete_object(Bucket=name, Key=key)
        client.delete_bucket(Bucket=name)
        gone.set()

    proxy.on(where(method="PUT", key=r"manifest\.json$"), "before", delete)
    try:
        remote.start()
        assert gone.wait(60)
        time.sleep(4)
        client.create_bucket(Bucket=name)
        for key, raw in saved.items():
            client.put_object(Bucket=name, Key=key, Body=raw)
        assert remote.wait() == [0]
    finally:
        client.close()
    remote.is_exact()
    remote.is_whole()
    assert any("NoSuchBucket" in event["message"] for event in remote.events("store trouble"))
