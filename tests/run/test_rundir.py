"""The run directory: whole files, one claim, and the history that survived."""

import json
import threading
from pathlib import Path

import pytest

from launchyard.run.append import Appender
from launchyard.run.records import Job, OutcomeRecord, Target
from launchyard.run.rundir import RunDir


def job(attempt: int) -> Job:
    return Job(
        attempt=attempt, backend="local", job_id="1", host="h", pid=1, pid_started=0.0, created=0.0, nnodes=1,
        nproc_per_node=1, device="cpu",
    )  # fmt: skip


def begin(run: RunDir, attempt: int, start: int, steps: range) -> None:
    run.claim_attempt(job(attempt))
    events = Appender(run, f"{run.attempt_dir(attempt)}/events")
    events.add({"event": "started", "step": start, "time": 0})
    events.flush()
    rows = Appender(run, f"metrics/steps-{attempt:04d}")
    for step in steps:
        rows.add({"step": step, "attempt": attempt, "loss": 1.0, "time": 0.0})
    rows.flush()


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path.name}/run")


def test_only_one_claims_an_attempt(tmp_path: Path) -> None:
    run, won = RunDir(str(tmp_path)), []

    def claim(name: int) -> None:
        try:
            run.claim_attempt(job(0))
            won.append(name)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=claim, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert run.attempts() == [0]


def test_a_later_attempt_takes_rows_back(run: RunDir) -> None:
    begin(run, 0, 0, range(1, 58))
    begin(run, 1, 50, range(51, 54))
    assert [row["step"] for row in run.rows("steps")] == list(range(1, 54))
    begin(run, 2, 50, range(51, 70))
    rows = list(run.rows("steps"))
    assert [row["step"] for row in rows] == list(range(1, 70))
    assert {row["attempt"] for row in rows if row["step"] > 50} == {2}


def test_an_attempt_that_never_started_takes_nothing_back(run: RunDir) -> None:
    begin(run, 0, 0, range(1, 10))
    run.claim_attempt(job(1))
    assert len(list(run.rows("steps"))) == 9


def test_a_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    begin(run, 0, 0, range(1, 4))
    path = tmp_path / "metrics" / "steps-0000.jsonl"
    path.write_bytes(path.read_bytes() + json.dumps({"step": 4}).encode()[:-3])
    assert [row["step"] for row in run.rows("steps")] == [1, 2, 3]


def test_files_are_replaced_as_a_whole(run: RunDir) -> None:
    run.write_text("a/b.json", "{}")
    run.write_json("a/b.json", {"x": 1}, sync=True)
    assert run.read_json("a/b.json") == {"x": 1}
    assert run.listdir("a") == ["b.json"]
    run.remove("a/b.json")
    run.remove("a/b.json")
    assert not run.exists("a/b.json")


def test_records_are_taken_back_without_a_right_to_delete(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a store; on a disk they are gone. Either way readers find none, and a new record counts."""
    if not run.local:
        monkeypatch.setattr(RunDir, "remove", lambda *_: pytest.fail("deleted"))
    ended = OutcomeRecord(outcome="stopped", reason="stop", message="m", attempt=0, step=1, time=1.0)
    target = Target(rank=0, url="http://h:1/metrics", node="h", time=1.0)
    for _ in range(2):
        run.clear_stop()
        assert run.stop_requested() is None
        run.request_stop("stop")
        run.write_outcome(ended, of_run=True)
        run.record_waiting("7", "for nodes")
        run.register_target(0, target)
        assert run.stop_requested() and run.outcome() == ended and run.waiting("7") and run.targets(0) == [target]
        run.clear_stop()
        run.clear_outcome()
        run.clear_waiting()
        run.remove_target(0, 0)
        assert (run.stop_requested(), run.outcome(), run.waiting("7"), run.targets(0)) == (None, None, None, [])


def test_a_stop_request_that_is_damaged_counts_until_it_is_taken_back(run: RunDir) -> None:
    for raw in ("", "{", "[]", "{}"):
        run.write_text("stop.json", raw)
        assert run.stop_requested() == {}
        run.clear_stop()
        assert run.stop_requested() is None
