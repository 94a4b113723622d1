"""Runs that go on from memory: killed anywhere, they are the run that was not killed, and lose next to nothing."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from launchyard.launcher.agent.memory import AgentMemory
from launchyard.run.rundir import RunDir
from launchyard.training.spec import DataSpec
from tests.support.small_runs import final_weights, history, make_run, run_workers, start_workers, write_data

STEPS = 60
RECIPE = {
    "train.max_steps": STEPS, "checkpoint.every_steps": 25, "validation.every_steps": 20, "train.ema_decay": 0.9,
}  # fmt: skip

NEVER = {"checkpoint.snapshot_steps": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=[1, 2])
def whole(
    request: pytest.FixtureRequest, data: DataSpec, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, RunDir]:
    """A run that nobody disturbs, without slots, by so many ranks."""
    run = make_run(tmp_path_factory.mktemp("whole") / "run", data, RECIPE)
    run_workers(run, request.param, NEVER)
    return request.param, run


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentMemory]:
    """An agent's, for the workers that the test starts."""
    owned = AgentMemory()
    for name, value in owned.begin(2).items():
        monkeypatch.setenv(name, value)
    yield owned
    owned.empty()


def kill_when(run: RunDir, nproc: int, when: Callable[[], bool]) -> None:
    processes = start_workers(run, nproc)
    while all(process.poll() is None for process in processes) and not when():
        time.sleep(0.002)
    for process in processes:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()


def started(run: RunDir) -> dict[str, Any]:
    """How the newest attempt began."""
    return next((e for e in run.events(run.attempts()[-1]) if e["event"] == "started"), {})


def rows_of(run: RunDir, attempt: int) -> list[dict[str, Any]]:
    return list(run.attempt_rows("steps", attempt))


def reached(run: RunDir) -> int:
    return max((int(row["step"]) for row in rows_of(run, run.attempts()[-1])), default=0)


def assert_same_run(one: RunDir, other: RunDir) -> None:
    assert history(one) == history(other)
    mine, theirs = final_weights(one), final_weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    figures = [[(row["step"], row["loss"]) for row in run.rows("validation")] for run in (one, other)]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("every", [1, 3])
def test_a_killed_run_is_the_run_that_was_not(
    whole: tuple[int, RunDir], every: int, data: DataSpec, memory: AgentMemory, tmp_path: Path
) -> None:
    nproc, expected = whole
    run = make_run(tmp_path / "run", data, RECIPE | {"checkpoint.snapshot_steps": every})
    rng = random.Random(every)
    sources = []
    for at in (13, 31, 47):
        pause = rng.uniform(0, 0.02)
        kill_when(run, nproc, lambda at=at, pause=pause: reached(run) >= at and not time.sleep(pause))
        sources.append(started(run).get("source"))
    last = reached(run)
    run_workers(run, nproc)
    sources.append(started(run)["source"])
    assert sources == [None, "memory", "memory", "memory"]
    assert last - started(run)["step"] <= every + 1  # one is made while the step before it is sealed
    assert_same_run(run, expected)


def test_without_snapshots_no_slot_is_made(data: DataSpec, memory: AgentMemory, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", data, RECIPE)
    run_workers(run, 1, NEVER)
    memory.begin(1)
    assert memory.newest_step() is None
    assert "source" not in started(run)
