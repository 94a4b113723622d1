"""The local backend with real processes: how runs end, who may own one, and that nothing is ever left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launchyard.errors import UserError
from launchyard.host.processes import end_marked, marked
from launchyard.launcher.agent.ownership import claim_next
from launchyard.launcher.backends.base import judge_job, known_backends, load_backend, owner_alive
from launchyard.launcher.backends.local import backend
from launchyard.run.records import Job, Shape
from launchyard.run.rundir import RunDir
from tests.support.standin import HERE, Standin, kill, make_run

ONE = Shape(nproc_per_node=1, device="cpu")
ELSEWHERE = {"host": "elsewhere", "pid": 1, "pid_started": 0.0, "created": 0.0, **ONE.model_dump()}


def test_unknown_backend_lists_those_that_exist() -> None:
    with pytest.raises(UserError, match="local"):
        load_backend("moon")
    assert "local" in known_backends()
    assert load_backend("local").submit is backend.submit


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_completes(standin: Standin, workers: int) -> None:
    standin.submit(workers=workers, steps=5)
    record = standin.outcome()
    assert (record.outcome, record.reason, record.step) == ("completed", "done", 5)
    standin.nothing_left()
    assert standin.run.attempts() == [0]


def test_stop_request_saves_and_ends(standin: Standin) -> None:
    standin.submit(workers=2)
    standin.running()
    standin.run.request_stop("stop")
    record = standin.outcome()
    assert (record.outcome, record.reason) == ("stopped", "stop")
    assert record.checkpoint == standin.run.checkpoint_dir(record.step)
    assert standin.run.stop_requested() is None, "the next job must not find this job's stop"
    standin.nothing_left()


@pytest.mark.slow
def test_resume_goes_on_from_the_checkpoint(standin: Standin) -> None:
    standin.submit(steps=40)
    standin.running()
    standin.run.request_stop("stop")
    first = standin.outcome()
    job = standin.submit(steps=first.step + 5, overrides={"train.max_steps": 9})
    assert job.attempt == 1 and job.overrides == {"train.max_steps": 9}
    assert standin.outcome().outcome == "completed"
    rows = list(standin.run.rows("steps"))
    assert [row["step"] for row in rows] == list(range(1, first.step + 6))


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGTERM, "terminated"), pytest.param(signal.SIGINT, "stop", marks=pytest.mark.slow)]
)
def test_term_to_the_owner_is_an_agreed_stop(standin: Standin, number: signal.Signals, reason: str) -> None:
    job = standin.submit()
    standin.running()
    kill(job.pid, number)
    record = standin.outcome()
    assert (record.outcome, record.reason) == ("stopped", reason)
    assert record.step == standin.steps(0), "no step is lost"
    standin.nothing_left()


@pytest.mark.slow
def test_hangup_is_ignored(standin: Standin) -> None:
    job = standin.submit(steps=60)
    standin.running()
    kill(job.pid, signal.SIGHUP)
    assert standin.outcome().outcome == "completed"


def test_notice_saves_and_goes_on_by_itself(standin: Standin) -> None:
    job = standin.submit(steps=150)
    standin.running()
    backend.notify(standin.run, job)
    standin.running(attempt=1)
    first = standin.run.outcome(0)
    assert first is not None and (first.outcome, first.reason) == ("stopped", "preempted")
    started = next(event for event in standin.run.events(1) if event["event"] == "started")
    assert started["step"] == first.step, "0 steps lost"
    standin.run.request_stop("stop")
    assert standin.outcome().reason == "stop"
    standin.nothing_left()


@pytest.mark.slow
def test_a_user_stop_beats_a_preemption(standin: Standin) -> None:
    job = standin.submit()
    standin.running()
    standin.run.request_stop("stop")
    backend.notify(standin.run, job)
    record = standin.outcome()
    assert (record.outcome, record.reason) == ("stopped", "stop")
    assert standin.run.attempts() == [0]


@pytest.mark.slow
def test_killed_worker_is_named_and_the_run_recovers(standin: Standin) -> None:
    standin.submit(workers=2, steps=30, save_every=5, faults={"0": {"kill_at": 12}})
    assert standin.outcome().outcome == "completed"
    first = standin.run.outcome(0)
    assert first is not None and first.outcome == "failed" and first.reason == "killed"
    assert "rank 0" in first.message and "SIGKILL" in first.message
    rows = list(standin.run.rows("steps"))
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert [row["attempt"] for row in rows] == [0] * 10 + [1] * 20, "attempt 1 took steps 11 and 12 back"
    standin.nothing_left()


def test_fatal_error_ends_at_once(standin: Standin) -> None:
    standin.submit(faults={"0": {"error_at": 3, "fatal": True, "type": "NonFiniteError"}})
    record = standin.outcome()
    assert (record.outcome, record.fatal, record.reason, record.step) == ("failed", True, "non-finite", 3)
    assert "it broke" in record.message and "badly" not in record.message, "the first line only"
    assert standin.run.attempts() == [0]
    standin.nothing_left()


@pytest.mark.slow
def test_failures_without_progress_end_the_run(standin: Standin) -> None:
    standin.submit(overrides={"resources.max_failures": 2}, faults={"0": {"error_at": 2}, "1": {"error_at": 2}})
    record = standin.outcome()
    assert record.outcome == "failed" and record.attempt == 1
    assert standin.run.attempts() == [0, 1]


@pytest.mark.slow
def test_a_stop_during_the_back_off_is_heard(standin: Standin) -> None:
    standin.submit(faults={"0": {"error_at": 1}})
    standin.wait(lambda: standin.run.outcome(0))
    standin.run.request_stop("stop")
    record = standin.outcome()
    assert (record.outcome, record.reason) == ("stopped", "stop")


def test_cancel_ends_everything_now(standin: Standin) -> None:
    job = standin.submit(workers=2, deaf=True)
    standin.running()
    began = time.monotonic()
    backend.cancel(standin.run, job)
    assert time.monotonic() - began < 4
    record = standin.run.outcome()
    assert record is not None and (record.outcome, record.reason) == ("stopped", "cancelled")
    standin.nothing_left()


@pytest.mark.slow
def test_cancel_ends_an_owner_that_does_not_answer(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "CANCEL_SECONDS", 0.5)
    job = standin.submit()
    standin.running()
    kill(job.pid, signal.SIGSTOP)
    backend.cancel(standin.run, job)
    record = standin.run.outcome()
    assert record is not None and record.reason == "cancelled"
    standin.nothing_left()


# -- death -----------------------------------------------------------------------------------------------------------
def test_death_of_the_owner_takes_everything(standin: Standin) -> None:
    job = standin.submit(workers=2)
    standin.running()
    kill(job.pid)
    standin.nothing_left()
    assert standin.run.outcome() is None and not owner_alive(standin.run)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.4, 0.8, 1.1, 1.4])
def test_death_of_the_owner_during_the_start(standin: Standin, delay: float) -> None:
    job = standin.submit(workers=2, silent=True)
    time.sleep(delay + random.uniform(0, 0.1))
    kill(job.pid)
    time.sleep(0.5)  # a worker that was being started gets as far as asking for its parent
    standin.nothing_left()


def test_death_of_the_owner_just_before_its_workers_look_for_their_parent(standin: Standin) -> None:
    """Workers that exist but have not come as far as asking the kernel to end them with torchrun."""
    job = standin.submit(workers=4, silent=True)
    standin.wait(lambda: len(marked(standin.run.url, attempt=0)) > 1)
    kill(job.pid)
    time.sleep(0.5)
    standin.nothing_left()


@pytest.mark.slow
def test_death_of_torchrun_takes_its_workers(standin: Standin) -> None:
    standin.submit(steps=60)
    standin.running()
    (worker,) = standin.worker_pids()
    kill(standin.torchrun_pid())
    assert standin.outcome().outcome == "completed"
    assert not os.path.exists(f"/proc/{worker}")
    first = standin.run.outcome(0)
    assert first is not None and "torchrun was killed by signal 9" in first.message


@pytest.mark.slow
def test_torchrun_is_shielded_from_signals(standin: Standin) -> None:
    standin.submit(steps=80)
    standin.running()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT):
        kill(standin.torchrun_pid(), number)
    assert standin.outcome().outcome == "completed"
    assert standin.run.attempts() == [0]


# -- claims ----------------------------------------------------------------------------------------------------------
def test_a_living_run_refuses_a_second_job(standin: Standin) -> None:
    job = standin.submit()
    with pytest.raises(UserError, match=f"process {job.pid}"):
        standin.submit()
    assert standin.run.attempts() == [0]


def test_of_two_owners_at_once_one_refuses(standin: Standin) -> None:
    """Both are past the first check before either has claimed."""
    argv = [
        sys.executable,
        "-m",
        "launchyard.launcher.backends.local.owner",
        standin.run.url,
        "--nproc-per-node=1",
        "--device=cpu",
    ]
    request = json.dumps({"overrides": {}, "worker_module": "standin_worker"}).encode()
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    lines, owners = [], []
    for _ in range(4):
        ours, theirs = socket.socketpair()
        owners.append(subprocess.Popen(argv, stdin=theirs.fileno(), env=env, stderr=subprocess.DEVNULL))
        theirs.close()
        lines.append(ours)
    standin.pids |= {owner.pid for owner in owners}
    time.sleep(1.0)
    for line in lines:
        line.sendall(request)
        line.shutdown(socket.SHUT_WR)
    answers = [json.loads(line.makefile().read()) for line in lines]
    for line in lines:
        line.close()
    winners = [answer["job"]["pid"] for answer in answers if "job" in answer]
    for owner in owners:
        if owner.pid in winners:
            owner.kill()
        owner.wait(10)
    assert len(winners) == 1, answers
    assert all("process" in answer["error"] for answer in answers if "job" not in answer)


def test_the_slower_of_two_claims_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have found the run free; the file system decides."""
    run = make_run(tmp_path)
    start = threading.Barrier(4)
    said: list[str] = []

    def none_yet(run: RunDir) -> list[int]:
        start.wait(10)
        return []

    monkeypatch.setattr(RunDir, "attempts", none_yet)

    def claim() -> None:
        try:
            claim_next(run, backend="local", job_id="1", shape=ONE, overrides={}, judge=judge_job)
        except UserError as error:
            said.append(str(error))

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 3 and all("has just claimed attempt 0" in text for text in said)


def test_a_job_of_another_host_is_alive_while_its_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    job = Job(attempt=0, backend="local", job_id="1", **ELSEWHERE)
    run.claim_attempt(job)
    monkeypatch.setattr("launchyard.launcher.agent.ownership.TAKEOVER_SECONDS", 0.3)
    beat = Path(run.path("attempts/0000/heartbeat.json"))
    run.write_json("attempts/0000/heartbeat.json", {"time": 0.0})  # by a clock that is wrong: what it says is not asked
    with pytest.raises(UserError, match="elsewhere"):
        claim_next(run, backend="local", job_id="2", shape=ONE, overrides={}, judge=judge_job)
    os.utime(beat, (time.time() - 3600, time.time() - 3600))
    assert claim_next(run, backend="local", job_id="2", shape=ONE, overrides={}, judge=judge_job).attempt == 1


def test_a_heart_that_beats_again_is_not_taken_over(tmp_path: Path) -> None:
    """Its lease has expired, since its store was away for longer; whoever looks a moment too early must not win."""
    run = make_run(tmp_path)
    job = Job(attempt=0, backend="local", job_id="1", **ELSEWHERE)
    run.claim_attempt(job)
    beat = Path(run.path("attempts/0000/heartbeat.json"))
    run.write_json("attempts/0000/heartbeat.json", {"time": 1.0})
    os.utime(beat, (time.time() - 3600, time.time() - 3600))
    again = threading.Timer(0.5, lambda: run.write_json("attempts/0000/heartbeat.json", {"time": 2.0}))
    again.start()
    with pytest.raises(UserError, match="elsewhere"):
        claim_next(run, backend="local", job_id="2", shape=ONE, overrides={}, judge=judge_job)
    again.join()


@pytest.mark.slow
def test_what_a_dead_job_left_is_ended_before_the_next(standin: Standin) -> None:
    """A process of an earlier attempt that the kernel did not end with its owner."""
    env = {**os.environ, "LAUNCHYARD_RUN_URL": standin.run.url, "LAUNCHYARD_ATTEMPT": "0"}
    zombie = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], env=env)
    try:
        standin.wait(lambda: marked(standin.run.url))
        standin.submit(steps=3)
        assert zombie.wait(10) == -signal.SIGKILL
    finally:
        zombie.kill()
        zombie.wait()
    assert standin.outcome().outcome == "completed"


def test_marks_tell_attempts_and_nodes_apart(tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    sleepers = []
    try:
        for attempt, node in (("0", "0"), ("1", "0"), ("1", "1")):
            marks = {"LAUNCHYARD_RUN_URL": url, "LAUNCHYARD_ATTEMPT": attempt, "LAUNCHYARD_NODE_RANK": node}
            code = "import time; print(1, flush=True); time.sleep(100)"
            child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **marks}, stdout=subprocess.PIPE)
            assert child.stdout is not None and child.stdout.readline()
            sleepers.append(child)
        assert {process.pid for process in marked(url)} == {child.pid for child in sleepers}
        assert end_marked(url, attempt=1, node_rank=1) == 1
        assert sleepers[2].poll() is not None and sleepers[0].poll() is None and sleepers[1].poll() is None
        assert [process.pid for process in marked(url, attempt=1)] == [sleepers[1].pid]
    finally:
        for child in sleepers:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
