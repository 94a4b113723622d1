"""Asked to stop: the flag only remembers, and votes turn into one reason for all."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from launchyard.training.stop import BY_SIGNAL, REASONS, StopFlag, agreed_reason


@pytest.fixture(autouse=True)
def _handlers():
    kept = {number: signal.getsignal(number) for number in (*BY_SIGNAL, signal.SIGHUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "reason"), BY_SIGNAL.items())
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals, reason: str) -> None:
    flag = StopFlag(None)
    flag.install()
    assert flag.reason() is None
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGTERM)  # the first one counts
    assert flag.reason() == reason


def test_the_file_is_seen(tmp_path: Path) -> None:
    flag = StopFlag(str(tmp_path))
    assert flag.reason() is None
    (tmp_path / "stop").write_text(json.dumps({"reason": "preempted"}))
    assert flag.reason() == "preempted"
    (tmp_path / "stop").write_text("half a fi")
    assert StopFlag(str(tmp_path)).reason() == "stop"


def test_the_end_of_the_job_is_a_reason() -> None:
    assert StopFlag(None, job_end=time.time() - 1).reason() == "time limit"
    assert StopFlag(None, job_end=time.time() + 60).reason() is None


@pytest.mark.parametrize(("left", "reason"), [(50, "time limit"), (70, "preempted")])
@pytest.mark.parametrize("by", ["signal", "file"])
def test_a_warning_near_the_end_of_the_job_is_about_that(left: float, reason: str, by: str, tmp_path: Path) -> None:
    flag = StopFlag(str(tmp_path), job_end=time.time() + left)
    flag.install()
    if by == "signal":
        os.kill(os.getpid(), signal.SIGUSR1)
    else:
        (tmp_path / "stop").write_text(json.dumps({"reason": "preempted"}))
    assert flag.reason() == reason


def test_a_person_s_stop_near_the_end_stays_one() -> None:
    flag = StopFlag(None, job_end=time.time() + 1)
    flag.install()
    os.kill(os.getpid(), signal.SIGINT)
    assert flag.reason() == "stop"


def test_the_heaviest_reason_wins() -> None:
    assert agreed_reason([0] * len(REASONS)) is None
    for i, reason in enumerate(REASONS):
        votes = [1] * (i + 1) + [0] * (len(REASONS) - i - 1)
        assert agreed_reason(votes) == reason
