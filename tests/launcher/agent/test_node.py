"""The agent of one node: exit codes, deadlines, ports, and what it tells its workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launchyard.host.ports import free_port
from launchyard.host.processes import end_marked, is_alive, marked, started_at
from launchyard.launcher.agent import node, torchrun_watch
from launchyard.launcher.agent.node import run_attempt
from launchyard.launcher.agent.signals import Signals
from launchyard.launcher.agent.torchrun_watch import Node
from launchyard.run.records import Shape
from launchyard.run.rundir import RunDir
from tests.launcher.runs.test_find import claim
from tests.support.standin import HERE, make_run

ONE = Shape(nproc_per_node=1, device="cpu")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    run = make_run(tmp_path)
    yield run
    end_marked(run.url)


def env(**plan: Any) -> dict[str, str]:
    return {"PYTHONPATH": str(HERE), "LAUNCHYARD_STANDIN": json.dumps(plan)}


def attempt(run: RunDir, *, signals: Signals | None = None, grace_seconds: float = 60.0, **plan: Any) -> Any:
    return run_attempt(node_of(run, env=env(**plan), grace_seconds=grace_seconds), signals=signals)


def node_of(run: RunDir, **more: Any) -> Node:
    return Node(run, 0, ONE, worker_module="standin_worker", **more)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "code"),
    [
        ({"steps": 3}, 0),
        ({"faults": {"0": {"error_at": 1}}}, 1),
        ({"faults": {"0": {"error_at": 1, "fatal": True}}}, 78),
    ],
)
def test_exit_codes_of_the_agent(run: RunDir, plan: dict[str, Any], code: int) -> None:
    assert agent(run, **plan).wait(30) == code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGTERM, "terminated"), (signal.SIGUSR1, "preempted"), (signal.SIGUSR2, "preempted")]
)
def test_signals_of_the_agent_become_an_agreed_stop(run: RunDir, number: signal.Signals, reason: str) -> None:
    claim(run, 0, alive=True)
    process = agent(run)
    wait(lambda: len(list(run.rows("steps"))) > 2)
    process.send_signal(number)
    assert process.wait(30) == 75
    record = run.outcome(0)
    assert record is not None and (record.outcome, record.reason) == ("stopped", reason)


@pytest.mark.slow
def test_killed_agent_leaves_nothing(run: RunDir) -> None:
    claim(run, 0, alive=True)
    process = agent(run)
    wait(lambda: len(list(run.rows("steps"))) > 2)
    process.kill()
    process.wait()
    wait(lambda: not marked(run.url), 3)


@pytest.mark.parametrize(
    ("notice", "outcome"), [("preempted", "failed"), pytest.param("stop", "stopped", marks=pytest.mark.slow)]
)
def test_a_save_that_takes_too_long_is_ended(run: RunDir, notice: str, outcome: str) -> None:
    signals = Signals()
    signals.preempted = notice == "preempted"
    signals.stop = "stop" if notice == "stop" else None
    record = attempt(run, signals=signals, grace_seconds=2.5, deaf=True)
    assert record.outcome == outcome and "not done after" in record.message
    assert run.outcome(0) == record, "written, since no worker could"
    assert not marked(run.url)


def test_torchrun_whose_worker_left_without_a_word_ends(run: RunDir) -> None:
    """It waits for a value of each, which os._exit gives none."""
    record = attempt(run, faults={"0": {"quit_at": 2}})
    assert (record.outcome, record.reason) == ("failed", "no outcome")
    assert not marked(run.url)


@pytest.mark.slow
def test_torchrun_that_hangs_after_the_outcome_is_ended(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun_watch, "LINGER_SECONDS", 1.0)
    assert attempt(run, steps=2, linger=True).outcome == "completed"
    assert not marked(run.url)


def test_a_taken_port_is_not_the_end(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1], free_port()])
        monkeypatch.setattr(node, "free_port", lambda: next(ports))
        assert attempt(run, steps=2).outcome == "completed"
    assert next(ports, None) is None, "both were tried"


def test_workers_find_what_was_planned_and_their_scratch_is_gone_later(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    old = tmp_path / "tmp" / f"{node_stem(run)}old"
    old.mkdir()
    seen: dict[str, str] = {}
    mode = []

    def on_poll() -> None:
        for process in marked(run.url, attempt=0):
            seen.update(process.environ())
            if os.path.isdir(seen["LAUNCHYARD_SCRATCH"]):
                mode.append(os.stat(seen["LAUNCHYARD_SCRATCH"]).st_mode & 0o777)

    record = run_attempt(node_of(run, env=env(steps=2), job_end=time.time() + 1000), on_poll=on_poll)
    assert record.outcome == "completed"
    assert seen["LAUNCHYARD_RUN_URL"] == run.url and seen["CUDA_VISIBLE_DEVICES"] == ""
    assert int(seen["OMP_NUM_THREADS"]) >= 1 and float(seen["LAUNCHYARD_JOB_END"]) > time.time()
    assert set(mode) == {0o700}
    assert list((tmp_path / "tmp").iterdir()) == [], "neither ours nor what a killed agent left"


def test_more_nodes_need_a_meeting_point(run: RunDir) -> None:
    with pytest.raises(ValueError, match="rdzv_endpoint"):
        run_attempt(Node(run, 0, ONE.model_copy(update={"nnodes": 2})))


def test_signals_only_set_flags() -> None:
    signals = Signals(term_is_notice=True)
    assert signals.reason() is None
    signals._on_notice(signal.SIGUSR1, None)
    assert signals.reason() == "preempted"
    signals._on_stop(signal.SIGINT, None)
    signals._on_stop(signal.SIGTERM, None)
    assert signals.reason() == "stop", "the first one counts"


def test_a_process_number_used_again_is_another_process() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = started_at(child.pid)
    assert started is not None and is_alive(child.pid, started)
    assert not is_alive(child.pid, started - 5)
    child.communicate(b"\n")
    assert not is_alive(child.pid, started)


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    try:
        wait(lambda: started_at(child.pid) is None)
    finally:
        child.wait()


def agent(run: RunDir, **plan: Any) -> subprocess.Popen[bytes]:
    argv = [
        sys.executable,
        "-m",
        "launchyard.launcher.agent.node",
        run.url,
        "--attempt=0",
        "--nproc-per-node=1",
        "--device=cpu",
    ]
    argv += ["--worker-module=standin_worker"]
    return subprocess.Popen(argv, env={**os.environ, **env(**plan)}, stderr=subprocess.DEVNULL)


def node_stem(run: RunDir) -> str:
    import hashlib

    return f"launchyard-{hashlib.sha256(run.url.encode()).hexdigest()[:12]}-0-"


def wait(done: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)
