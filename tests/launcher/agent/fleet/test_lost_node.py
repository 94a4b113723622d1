"""Workers of two nodes, one of which is lost with its memory: what its neighbour has of it makes the same run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from launchyard.host.environment import SLOTS
from launchyard.launcher.agent.fleet.neighbours import Neighbours
from launchyard.launcher.agent.fleet.wire import NodePart
from launchyard.launcher.agent.memory import AgentMemory
from launchyard.run.records import Shape
from launchyard.run.rundir import RunDir
from tests.launcher.agent.fleet.conftest import SECRET
from tests.support.small_runs import final_weights, history, make_run, run_workers, start_workers, write_data

TWO = Shape(nnodes=2, nproc_per_node=1, device="cpu")
EVERY = 4
RECIPE = {"train.max_steps": 36, "checkpoint.every_steps": 1000, "checkpoint.snapshot_steps": EVERY}


class Agent:
    """What of an agent outlives its workers."""

    def __init__(self, place: str) -> None:
        self.memory = AgentMemory()
        self.there = Neighbours(self.memory, SECRET, place=place, host="127.0.0.1")

    def begin(self, rank: int, attempt: int, buddy: Agent, *, source: Agent | None = None, step: int = 0) -> str:
        """The names of the slots of its worker."""
        address = None if source is None else source.there.address
        part = NodePart(
            attempt=attempt, shape=TWO, node_rank=rank, buddy=buddy.there.address, source=address, source_step=step
        )
        self.there.begin(part, on_poll=lambda: None)
        return self.memory.begin(1)[SLOTS]


def kill_after(run: RunDir, step: int) -> int:
    """The last step that was made."""
    processes = start_workers(run, 2)

    def reached() -> int:
        return max((int(row["step"]) for row in run.attempt_rows("steps", run.attempts()[-1])), default=0)

    while all(process.poll() is None for process in processes) and reached() < step:
        time.sleep(0.005)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()
    return reached()


@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_lost_node_costs_no_more_than_a_lost_worker(
    lost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "data")
    whole = make_run(tmp_path / "whole", data, RECIPE)
    run_workers(whole, 2, {"checkpoint.snapshot_steps": None})
    run = make_run(tmp_path / "run", data, RECIPE)
    agents = [Agent("one"), Agent("two")]
    names = [agents[rank].begin(rank, 0, agents[1 - rank]) for rank in range(2)]
    monkeypatch.setenv(SLOTS, " ".join(names))
    last = kill_after(run, 20)

    agents[lost].there.close()
    agents[lost].memory.empty()
    left, new = agents[1 - lost], Agent("new")
    step = max(set(left.memory.whole_steps()) & set(left.there.steps()[lost]))
    agents[lost] = new
    words = ["", ""]
    words[1 - lost] = left.begin(1 - lost, 1, new)
    words[lost] = new.begin(lost, 1, left, source=left, step=step)
    monkeypatch.setenv(SLOTS, " ".join(words))
    run_workers(run, 2)
    started = next(event for event in run.events(1) if event["event"] == "started")
    for agent in agents:
        agent.there.close()
    assert (started["source"], started["step"]) == ("memory", step)
    assert step > 0 and last - step <= 2 * EVERY
    assert history(run) == history(whole)
    mine, theirs = final_weights(run), final_weights(whole)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
