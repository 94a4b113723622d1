"""The torchrun that stands by: made while workers train, given the attempt that follows, and no other one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from launchyard.host.environment import SCRATCH
from launchyard.host.processes import end_marked, marked, wait_until
from launchyard.launcher.agent.node import run_attempt
from launchyard.launcher.agent.start import standby as module
from launchyard.launcher.agent.start import started
from launchyard.launcher.agent.start.standby import Standby
from launchyard.launcher.agent.torchrun_watch import Node
from launchyard.run.records import OutcomeRecord, Shape
from launchyard.run.rundir import RunDir
from launchyard.training.telemetry.heartbeat import PulseWriter
from tests.launcher.agent.test_node import env
from tests.launcher.runs.test_find import claim
from tests.support.standin import make_run

TWO = Shape(nproc_per_node=2, device="cpu")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDir]:
    monkeypatch.setattr(module, "STEADY_SECONDS", 0.0)
    monkeypatch.setattr(module, "POLLED_SECONDS", 0.1)
    run = make_run(tmp_path)
    claim(run, 0, alive=True)
    yield run
    end_marked(run.url)


def attempt(run: RunDir, number: int, standby: Standby, *, train: bool = True, **plan: object) -> OutcomeRecord:
    """One attempt of stand-ins, which have made a step as soon as they are there, and last until the next is ready."""
    pulses: list[PulseWriter] = []

    def give_signs() -> None:
        if not train or pulses:
            return
        scratch = next((one.environ()[SCRATCH] for one in marked(run.url, attempt=number)), "")
        if os.path.isdir(scratch):
            pulses.append(PulseWriter(scratch, 0, None))
            pulses[0].stepped(1, 0.1)
            pulses[0].beat()

    node = Node(run, number, TWO, worker_module="standin_worker", env=env(**plan))
    return run_attempt(node, on_poll=give_signs, standby=standby)


def test_the_next_attempt_goes_to_the_torchrun_that_stood_by(run: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    standby = Standby()
    plan = {"step_seconds": 0.05, "faults": {"0": {"error_at": 40}}, "steps": 43}
    assert attempt(run, 0, standby, **plan).outcome == "failed"
    (waiting,) = [one.pid for one in marked(run.url, attempt=1) if "--standby" in one.cmdline()]
    claim(run, 1, alive=True)
    assert attempt(run, 1, standby, train=False, **plan).outcome == "completed"
    assert "attempt 1 begins with the torchrun that stood by" in capfd.readouterr().err
    assert not os.path.exists(f"/proc/{waiting}"), "it was used"
    assert {row["attempt"] for row in run.rows("steps") if row["step"] > 40} == {1}
    for number in (0, 1):
        said = Path(run.path(f"attempts/{number:04d}/logs/rank-00001.log")).read_text()
        assert "hello from rank 1" in said
        found = run.read_json(f"attempts/{number:04d}/pids/rank-1.json")
        assert found["collects"] and found["settled"], "what the server imported is not looked through again"
    assert not marked(run.url)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["environment", "attempt"])
def test_another_attempt_than_was_expected_starts_a_torchrun_of_its_own(run: RunDir, other: str) -> None:
    standby = Standby()
    long = {"step_seconds": 0.05, "faults": {"0": {"error_at": 40}}}
    attempt(run, 0, standby, steps=41, **long)
    assert marked(run.url, attempt=1)
    number = 2 if other == "attempt" else 1
    claim(run, number, alive=True)
    done = attempt(run, number, standby, train=False, steps=41 if other == "attempt" else 42, **long)
    assert done.outcome == "completed"
    assert not marked(run.url), "the one that stood by was ended"


def test_nothing_stands_by_before_a_step_is_made_nor_once_it_is_closed(run: RunDir) -> None:
    standby = Standby()
    assert attempt(run, 0, standby, train=False, steps=10).outcome == "completed"
    assert not marked(run.url)
    claim(run, 1, alive=True)
    attempt(run, 1, standby, steps=80, step_seconds=0.02)
    assert marked(run.url, attempt=2)
    standby.close()
    assert wait_until(lambda: not marked(run.url), seconds=3)


@pytest.mark.slow
def test_a_temporary_folder_may_have_a_long_name(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A socket's may not, and torchrun asks its server for workers over one."""
    short = Path(mkdtemp(dir="/tmp"))
    long = tmp_path / ("long" * 40)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(started, "SHORT_FOLDERS", (str(short),))
    standby = Standby()
    plan = {"step_seconds": 0.05, "faults": {"0": {"error_at": 40}}, "steps": 43}
    assert attempt(run, 0, standby, **plan).outcome == "failed"
    claim(run, 1, alive=True)
    assert attempt(run, 1, standby, train=False, **plan).outcome == "completed"
    assert "attempt 1 begins with the torchrun that stood by" in capfd.readouterr().err
    standby.close()
    assert not list(short.iterdir())
    short.rmdir()
