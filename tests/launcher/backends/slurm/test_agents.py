"""Agents that stay for a job: over failures, and who comes in the place of one that dies, freezes, or has a spare."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil
import pytest

from tests.support.fake_slurm import FakeSlurm
from tests.support.typed import Launched, Place


def agent_of(run: Launched, attempt: int = 0) -> dict[str, Any]:
    """Of the only node that takes part."""
    (found,) = run.run.read_json(f"attempts/{attempt:04d}/nodes.json")
    return dict(found)


def test_a_failure_of_the_worker_costs_no_agent(slurm: FakeSlurm, place: Place) -> None:
    place.workers_do(steps=8, save_every=2, faults={"0": {"error_at": 5}})
    run = place.launch()
    assert run.outcome().outcome == "completed"
    assert run.run.outcome(0).reason == "error"  # type: ignore[union-attr]
    assert agent_of(run, 0) == agent_of(run, 1)
    assert len(slurm.asked("srun")) == 1
    run.wait(lambda: slurm.job(run.job)["state"] == "COMPLETED")
    assert not psutil.pid_exists(agent_of(run)["pid"]), "it leaves with the job"


LOSSES = {signal.SIGKILL: "agent lost", signal.SIGSTOP: "node silent"}


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_lost_agent_is_replaced_on_its_node(number: signal.Signals, slurm: FakeSlurm, place: Place) -> None:
    """A frozen one is ended first: no node has two."""
    place.workers_do(save_every=5)
    run = place.launch()
    run.steps(7)
    os.kill(agent_of(run)["pid"], number)
    run.steps(1, attempt=1)
    record = run.run.outcome(0)
    assert record is not None and record.reason == LOSSES[number]
    assert "node 0 of the run on node1" in record.message
    first, second = slurm.asked("srun")
    assert "--nodelist=node1" in second and "--nodelist=node1" not in first
    assert not psutil.pid_exists(agent_of(run)["pid"])
    place.ok("cancel", run.run_id)


def test_a_spare_node_goes_on_at_once(slurm: FakeSlurm, place: Place) -> None:
    place.workers_do(save_every=5)
    run = place.launch("resources.spare_nodes=1")
    run.steps(7)
    assert (slurm.job(run.job)["nodes"], agent_of(run)["node"]) == ("node[1-2]", "node1")
    os.kill(agent_of(run)["pid"], signal.SIGKILL)
    run.steps(1, attempt=1)
    assert agent_of(run, 1)["node"] == "node2"
    assert len(slurm.asked("srun")) == 1
    place.ok("cancel", run.run_id)


def test_no_secret_is_in_the_words_or_in_the_run(slurm: FakeSlurm, place: Place) -> None:
    place.workers_do(save_every=5)
    run = place.launch()
    run.steps(2)
    agent = psutil.Process(agent_of(run)["pid"])
    secret = agent.environ()["LAUNCHYARD_HUB_SECRET"]
    words = [word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or []]
    assert not [word for word in words if secret in word]
    files = [os.path.join(folder, name) for folder, _, names in os.walk(place.runs) for name in names]
    for path in files:
        with open(path, "rb") as file:
            assert secret.encode() not in file.read(), path
    place.ok("cancel", run.run_id)


def test_spare_nodes_are_refused_where_nothing_is_kept_aside(place: Place) -> None:
    said = place.ok("tiny.yaml", "--cluster", "local", "resources.spare_nodes=1", "--dry-run", code=2)
    assert "resources.spare_nodes" in said and "keeps no nodes aside" in said
