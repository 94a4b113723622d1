"""Where a run stands, told from what its workers write; also while its store comes and goes."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from launchyard.errors import EXIT_STOPPED
from launchyard.host.processes import wait_until
from launchyard.launcher.watch.follow import follow
from launchyard.launcher.watch.progress import Progress
from launchyard.run.append import Appender
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.run.tail import RowTail
from tests.launcher.runs.test_find import claim
from tests.support.standin import make_run
from tests.support.store import Bucket


class Worker:
    """Writes what rank 0 of an attempt would write, at times of its own."""

    def __init__(self, run: RunDir, attempt: int = 0) -> None:
        self._events = Appender(run, f"{run.attempt_dir(attempt)}/events")
        self._rows = Appender(run, f"metrics/steps-{attempt:04d}")
        self._now = 1000.0

    def event(self, name: str, **facts: Any) -> None:
        self._now += 1
        self._events.add({"event": name, "time": self._now, **facts})
        self._events.flush()

    def row(self, step: int) -> None:
        self._now += 1
        facts = {"loss": 2.0, "tokens_seen": 64 * step, "tokens_per_second": 64.0, "step_seconds": 1.0}
        self._rows.add({"step": step, "time": self._now, **facts})
        self._rows.flush()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = make_run(tmp_path)
    claim(run, 0, alive=True)
    return run


def looked(progress: Progress) -> str:
    progress.refresh()
    return progress.line()


def test_phases_follow_the_workers_clock(run: RunDir) -> None:
    """Rows and events come from two files; what was written first must not hide what was written last."""
    progress, worker = Progress(run), Worker(run)
    assert looked(progress).startswith("starting workers")
    worker.event("process started")
    assert looked(progress).startswith("building the model")
    worker.event("started", step=0)
    assert looked(progress).startswith("first step")
    worker.row(1)
    worker.row(2)
    assert looked(progress) == "step 2/1000 · loss 2.000 · 64 tokens/s · ETA 16m 38s"
    worker.row(3)
    worker.event("validating", step=3)
    assert looked(progress).startswith("validating at step 3"), "the row is older than the event"
    worker.event("validated", step=3, loss=1.5)
    worker.row(4)
    assert looked(progress).startswith("step 4/1000")
    worker.row(5)
    worker.event("stopping", step=5, reason="stop")
    assert looked(progress).startswith("saving step 5 to stop (stop)")
    assert progress.news() == ["✓ validation loss 1.5000 at step 3"] and progress.news() == []


def test_a_new_attempt_begins_anew(run: RunDir) -> None:
    progress = Progress(run)
    worker = Worker(run)
    worker.event("started", step=0)
    worker.row(7)
    assert looked(progress).startswith("step 7")
    facts: dict[str, Any] = {"attempt": 0, "time": 1.0, "message": "rank 1 was killed"}
    run.write_outcome(OutcomeRecord(outcome="failed", reason="killed", **facts))
    claim(run, 1, alive=True)
    assert looked(progress).startswith("starting attempt 1")
    assert progress.news() == ["! attempt 0 failed (killed): rank 1 was killed"]
    worker = Worker(run, 1)
    worker.event("fell back", step=6, message="bad hash")
    worker.event("store trouble", seconds=61.0, message="could not read")
    worker.event("started", step=3)
    assert looked(progress).startswith("resuming from step 3")
    assert progress.news() == [
        "! checkpoint of step 6 is damaged, going further back: bad hash",
        "! its store has failed for 1m 01s: could not read",
        "✓ resumed from step 3",
    ]


def test_a_series_of_files_is_read_once(tmp_path: Path) -> None:
    """As in a store: the last part grows, those before it are whole as soon as there is a next one."""
    run = RunDir(str(tmp_path))
    tail = RowTail(run, "metrics", "steps-0000")
    run.write_text("metrics/steps-0000-000000.jsonl", '{"step": 1}\n')
    assert [row["step"] for row in tail.rows()] == [1]
    run.write_text("metrics/steps-0000-000000.jsonl", '{"step": 1}\n{"step": 2}\n')
    run.write_text("metrics/steps-0000-000001.jsonl", '{"step": 3}\n{"st')
    assert [row["step"] for row in tail.rows()] == [2, 3]
    run.write_text("metrics/steps-0000-000000.jsonl", '{"step": 1}\n{"step": 2}\n{"step": 3}\n')  # too late
    run.write_text("metrics/steps-0000-000001.jsonl", '{"step": 3}\n{"step": 4}\n')
    assert [row["step"] for row in tail.rows()] == [4]


def test_what_was_read_before_a_fault_is_not_lost(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    run.write_text("metrics/steps-0000-000000.jsonl", '{"step": 1}\n')
    run.write_text("metrics/steps-0000-000001.jsonl/in-the-way", "")
    tail = RowTail(run, "metrics", "steps-0000")
    found: list[int] = []
    with pytest.raises(IsADirectoryError):
        found.extend(row["step"] for row in tail.rows())
    (tmp_path / "metrics/steps-0000-000001.jsonl/in-the-way").unlink()
    (tmp_path / "metrics/steps-0000-000001.jsonl").rmdir()
    run.write_text("metrics/steps-0000-000001.jsonl", '{"step": 2}\n')
    assert [*found, *(row["step"] for row in tail.rows())] == [1, 2]


@pytest.mark.s3
def test_ctrl_c_while_the_store_is_silent(tmp_path: Path, s3: Bucket) -> None:
    """The watcher says that its store is silent, stays awake, and asks as soon as the store is back."""
    run = RunDir(f"{s3.url}/runs/tiny-abcd")
    run.write_text("plan.json", make_run(tmp_path).read_text("plan.json"))
    claim(run, 0, alive=True)
    worker = Worker(run)
    worker.event("started", step=0)
    worker.row(1)
    out = io.StringIO()
    failures: list[BaseException] = []
    over = threading.Event()

    def act() -> None:
        try:
            assert wait_until(lambda: "step 1/1000" in out.getvalue(), seconds=30)
            s3.server.freeze()
            assert wait_until(lambda: out.getvalue().count("does not answer") == 2, seconds=20), "it does not look up"
            os.kill(os.getpid(), signal.SIGINT)
            assert wait_until(lambda: "saving and stopping" in out.getvalue(), seconds=5), "it was not heard"
            s3.server.thaw()
            assert wait_until(lambda: run.stop_requested() is not None, seconds=30)
            facts: dict[str, Any] = {"attempt": 0, "step": 1, "time": time.time(), "message": "m"}
            run.write_outcome(OutcomeRecord(outcome="stopped", reason="stop", **facts), of_run=True)
        except BaseException as error:
            failures.append(error)
            while not over.wait(0.2):  # the third one ends it
                os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=act)
    thread.start()
    code = None
    try:
        with contextlib.suppress(KeyboardInterrupt):  # `failures` says why
            code = follow(run, out=out)
    finally:
        over.set()
        thread.join()
        s3.server.thaw()
    assert not failures, out.getvalue()
    assert code == EXIT_STOPPED
    assert run.stop_requested() == {"reason": "stop", "time": pytest.approx(time.time(), abs=60)}


def test_reading_weights_is_told_with_bytes(run: RunDir) -> None:
    worker = Worker(run)
    progress = Progress(run)
    worker.event("process started")
    assert looked(progress).startswith("building the model")
    worker.event("reading weights", bytes=3_100_000_000, total_bytes=15_200_000_000)
    assert looked(progress).startswith("reading weights 3.1 GB of 15.2 GB")
    worker.event("started", step=0)
    assert looked(progress).startswith("first step")
