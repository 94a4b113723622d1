"""One cause over ranks and attempts, from the run directory alone."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from launchyard.launcher.agent.hang_detector import HUNG
from launchyard.launcher.agent.root_cause import LOST_PEER, find_cause
from launchyard.launcher.runs.why import explain, from_memory_text, steps_lost
from launchyard.run.append import Appender
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from tests.launcher.runs.test_find import claim, rows
from tests.support.standin import make_run

SUMMARY = """
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
launchyard.training.worker FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-01-01_00:00:01
  host      : vm
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 10)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : vm
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 11)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 11
============================================================
"""


def error(run: RunDir, rank: int, kind: str, when: float, **more: Any) -> None:
    record = {"rank": rank, "host": "vm", "type": kind, "message": f"{kind} of {rank}\nsecond line", "traceback": "",
              "step": 7, "time": when, "fatal": False}  # fmt: skip
    run.write_error(0, rank, record | more)


def end(run: RunDir, outcome: str, reason: str, **more: Any) -> None:
    facts: dict[str, Any] = {"attempt": 0, "step": 30, "time": time.time(), **more}
    record = OutcomeRecord(outcome=outcome, reason=reason, **facts)
    run.write_outcome(record)
    run.write_outcome(record, of_run=True)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = make_run(tmp_path)
    claim(run, 0, alive=False)
    rows(run, 0, range(1, 31), start=0)
    run.write_text("checkpoints/step-00000020/manifest.json", "{}")
    return run


# -- the cause -------------------------------------------------------------------------------------------------------
def test_the_first_error_wins(run: RunDir) -> None:
    error(run, 0, "ConnectionError", 20.0)
    error(run, 1, "NonFiniteError", 10.0, fatal=True)
    cause = find_cause(run, 0)
    assert (cause.reason, cause.rank, cause.step, cause.fatal) == ("non-finite", 1, 7, True)
    assert cause.message == "rank 1: NonFiniteError: NonFiniteError of 1"


def test_a_killed_rank_comes_before_the_errors_of_those_that_lost_it(run: RunDir) -> None:
    error(run, 0, "DistBackendError", 20.0)
    run.write_text("attempts/0000/logs/node-0.log", SUMMARY)
    cause = find_cause(run, 0, exit_code=1)
    assert (cause.reason, cause.rank) == ("killed", 1)
    assert "signal 9 (SIGKILL)" in cause.message and "memory" in cause.message


LOST = "[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:3141"


def test_a_killed_rank_of_another_node_is_found_in_its_log(run: RunDir) -> None:
    error(run, 0, "RuntimeError", 20.0, message=LOST)
    found = find_cause(run, 0, exit_code=1)
    assert (found.reason, found.rank) == (LOST_PEER, 0)
    assert "rank 0 lost another rank" in found.message and "Connection closed by peer" in found.message
    run.write_text("attempts/0000/logs/node-1.log", SUMMARY.replace("rank      : 1 ", "rank      : 2 "))
    assert (find_cause(run, 0).reason, find_cause(run, 0).rank) == ("killed", 2)


def test_what_a_rank_says_of_itself_comes_before_those_that_lost_it(run: RunDir) -> None:
    error(run, 0, "RuntimeError", 10.0, message=LOST)
    error(run, 3, "OSError", 10.5, message="No space left on device")
    assert find_cause(run, 0).message == "rank 3: OSError: No space left on device"


def test_a_hung_rank_is_not_taken_for_a_killed_one(run: RunDir) -> None:
    error(run, 0, "RuntimeError", 10.0, message=LOST)
    error(run, 3, HUNG, 10.5)
    run.write_text("attempts/0000/logs/node-1.log", SUMMARY)
    assert (find_cause(run, 0).reason, find_cause(run, 0).rank) == ("hung", 3)


def test_a_rank_that_spoke_was_not_just_killed(run: RunDir) -> None:
    error(run, 1, "RuntimeError", 20.0)
    run.write_text("attempts/0000/logs/node-0.log", SUMMARY)
    assert find_cause(run, 0).message == "rank 1: RuntimeError: RuntimeError of 1"


def test_torchrun_killed_or_silent(run: RunDir) -> None:
    assert "torchrun was killed by signal 11 (SIGSEGV)" in find_cause(run, 0, exit_code=-signal.SIGSEGV).message
    run.write_text("attempts/0000/logs/node-0.log", "warning: x\nModuleNotFoundError: No module named 'torch'\nbye\n")
    assert find_cause(run, 0, exit_code=1).message.endswith("ModuleNotFoundError: No module named 'torch'")


# -- the paragraph ---------------------------------------------------------------------------------------------------
def test_never_started(tmp_path: Path) -> None:
    assert "never been started" in explain(make_run(tmp_path)).text


def test_failed_run(run: RunDir) -> None:
    error(run, 0, "RuntimeError", 1.0)
    error(run, 1, "RuntimeError", 2.0)
    end(run, "failed", "error", message="rank 0: RuntimeError: RuntimeError of 0", rank=0)
    found = explain(run)
    assert (found.steps_lost, found.checkpoint, found.attempt) == (10, 20, 0)
    for words in ("attempt 0 failed at step 30", "RuntimeError of 0", "1 other rank failed", "10 steps are lost"):
        assert words in found.text
    assert "launch resume tiny-abcd" in found.text and "log" in found.text


def test_fatal_failure_says_that_it_was_not_tried_again(run: RunDir) -> None:
    end(run, "failed", "non-finite", message="rank 0: NonFiniteError: step 31: loss nan", fatal=True, step=31)
    assert "would end the same way" in explain(run).text


def test_stopped_by_a_user(run: RunDir) -> None:
    run.write_text("checkpoints/step-00000030/manifest.json", "{}")
    end(run, "stopped", "stop", checkpoint="checkpoints/step-00000030")
    found = explain(run)
    assert found.steps_lost == 0
    assert "was stopped by a user at step 30" in found.text and "no step is lost" in found.text
    assert "To go on from step 30" in found.text


def test_a_stop_that_came_to_no_save_says_so(run: RunDir) -> None:
    end(run, "stopped", "stop", message="asked to stop (stop), and the save was not done after 600 s")
    text = explain(run).text
    assert "the save was not done after 600 s" in text and "10 steps are lost" in text


def test_what_kept_it_from_saving_is_told(run: RunDir) -> None:
    events = Appender(run, "attempts/0000/events")
    events.add({"event": "save failed", "time": 1.0, "step": 20, "message": "connection refused"})
    events.add({"event": "saved", "time": 1.0, "step": 20})
    assert "failed" not in explain(run).text, "it got over that"
    events.add({"event": "save failed", "time": 1.0, "step": 30, "message": "bucket full\nat length"})
    events.add({"event": "store trouble", "time": 1.0, "message": "could not read: no answer"})
    text = explain(run).text
    assert "Its last save, of step 30, failed: bucket full. Its store had failed: could not read" in text
    events.add({"event": "store answers again", "time": 1.0})
    assert "in trouble" not in explain(run).text


def test_owner_gone(run: RunDir) -> None:
    run.write_json("attempts/0000/heartbeat.json", {"time": time.time() - 100})
    found = explain(run)
    assert (found.state, found.reason, found.steps_lost) == ("lost", "owner gone", 10)
    assert "is gone, last seen 1m 40s ago" in found.text


def test_running_run_tells_how_the_attempt_before_ended(run: RunDir) -> None:
    facts: dict[str, Any] = {"attempt": 0, "step": 30, "time": time.time()}
    run.write_outcome(OutcomeRecord(outcome="failed", reason="killed", message="rank 1 was killed", **facts))
    claim(run, 1, alive=True)
    text = explain(run).text
    assert "has not ended: attempt 1 is starting" in text and "rank 1 was killed" in text


def test_history_of_failures(run: RunDir) -> None:
    facts: dict[str, Any] = {"outcome": "failed", "reason": "error", "message": "rank 0: OSError: disk full", "step": 3}
    for attempt in (0, 1):
        run.write_outcome(OutcomeRecord(attempt=attempt, time=1.0, **facts))
    claim(run, 1, alive=False)
    claim(run, 2, alive=False)
    last = OutcomeRecord(attempt=2, time=1.0, **facts)
    run.write_outcome(last)
    run.write_outcome(last, of_run=True)
    assert "2 earlier attempts failed (all by: rank 0: OSError: disk full)" in explain(run).text


def test_it_says_whether_memory_was_of_use(run: RunDir) -> None:
    assert from_memory_text(run) == ""
    started = {"event": "started", "time": 1.0, "step": 20, "resumed": True}
    Appender(run, "attempts/0000/events").add(started | {"source": "memory"})
    assert from_memory_text(run) == "Attempt 0 went on from step 20 in memory."
    claim(run, 1, alive=False)
    events = Appender(run, "attempts/0001/events")
    events.add({"event": "snapshots lost", "time": 1.0, "message": "nothing in memory is of rank 1"})
    events.add(started | {"source": "disk"})
    assert from_memory_text(run) == "Attempt 1 could not go on from memory: nothing in memory is of rank 1."
    assert steps_lost(run, 1, 5) == 15, "it made none itself, and no checkpoint holds what it began with"
    assert steps_lost(run, 1, 20) is None
