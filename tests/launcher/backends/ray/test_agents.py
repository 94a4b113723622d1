"""Agents that stay on the nodes of a Ray: over failures, and which nodes are exchanged for others."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil
import pytest

from tests.support.fake_ray import FakeRay
from tests.support.typed import Launched, Place


def nodes_of(run: Launched, attempt: int = 0) -> list[dict[str, Any]]:
    """Those that take part, by rank."""
    return list(run.run.read_json(f"attempts/{attempt:04d}/nodes.json"))


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_failure_of_the_worker_costs_no_agent(cluster: FakeRay, place: Place) -> None:
    place.workers_do(steps=8, save_every=2, faults={"0": {"error_at": 5}})
    run = place.launch("--nodes", "2")
    assert run.outcome().outcome == "completed"
    assert run.run.outcome(0).reason == "error"  # type: ignore[union-attr]
    assert nodes_of(run, 0) == nodes_of(run, 1)
    run.wait(lambda: all(gone(node[kind]) for node in nodes_of(run) for kind in ("pid", "agent")))


def test_an_agent_that_is_killed_has_another_one_in_its_place(cluster: FakeRay, place: Place) -> None:
    place.workers_do(save_every=5)
    run = place.launch()
    run.steps(7)
    os.kill(nodes_of(run)[0]["agent"], signal.SIGKILL)
    run.steps(1, attempt=1)
    record = run.run.outcome(0)
    assert record is not None and record.reason == "agent lost"
    assert "node 0 of the run on host0 (127.0.0.1) is gone" in record.message
    (before,), (after,) = nodes_of(run, 0), nodes_of(run, 1)
    assert (after["pid"], after["node_id"]) == (before["pid"], before["node_id"]), "its actor has started it"
    place.ok("cancel", run.run_id)
    run.wait(lambda: gone(after["agent"]))


@pytest.mark.parametrize(
    "others", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["another node", "no other node"]
)
def test_a_silent_node_is_exchanged_and_the_others_stay(others: bool, cluster: FakeRay, place: Place) -> None:
    """Where there is no other one its actor is ended, and what is frozen with it; a new one takes its place."""
    cluster.nodes(3 if others else 2)
    place.workers_do(save_every=5)
    run = place.launch("--nodes", "2")
    run.steps(7)
    first, last = nodes_of(run)
    os.kill(last["agent"], signal.SIGSTOP)
    run.steps(1, attempt=1)
    record = run.run.outcome(0)
    assert record is not None and record.reason == "node silent"
    assert "node 1 of the run on host1 (127.0.0.2) was silent for 5 s" in record.message
    stays, new = nodes_of(run, 1)
    assert stays == first
    assert new["host"] == ("host2" if others else "host1")
    assert gone(last["agent"])
    place.ok("cancel", run.run_id)


def one_of_two_dies(cluster: FakeRay, place: Place) -> tuple[Launched, dict[str, Any]]:
    """A run of two nodes that has saved, and what is known of its first node; the second one is gone."""
    place.workers_do(save_every=5)
    run = place.launch("--nodes", "2")
    run.steps(7)
    first, last = nodes_of(run)
    cluster.lose_node(1)
    os.kill(last["pid"], signal.SIGKILL)
    return run, first


def test_a_dead_node_is_exchanged_before_ray_has_noticed(cluster: FakeRay, place: Place) -> None:
    cluster.nodes(3)
    run, first = one_of_two_dies(cluster, place)
    run.steps(1, attempt=1)
    record = run.run.outcome(0)
    assert record is not None and record.reason == "node lost"
    assert "host1 (127.0.0.2) went away, with node 1 of the run" in record.message
    stays, new = nodes_of(run, 1)
    assert stays == first and new["host"] == "host2"
    place.ok("cancel", run.run_id)


def test_the_others_stay_until_there_is_a_node_in_the_place_of_a_dead_one(cluster: FakeRay, place: Place) -> None:
    """With what they have in memory; the wait is told."""
    run, first = one_of_two_dies(cluster, place)
    run.wait(lambda: run.status()["state"] == "pending")
    assert "of 1 node here 1 has that much" in run.status()["queue"]
    assert not gone(first["agent"]) and cluster.given_back() == [1]
    cluster.nodes(3, dead=(1,))
    run.steps(1, attempt=1)
    stays, new = nodes_of(run, 1)
    assert stays == first and new["host"] == "host2"
    assert run.status()["state"] == "running"
    place.ok("cancel", run.run_id)


def test_a_drained_node_is_exchanged_alone(cluster: FakeRay, place: Place) -> None:
    cluster.nodes(3)
    run = place.launch("--nodes", "2")
    run.steps(3)
    first, last = nodes_of(run)
    cluster.drain(1, seconds=60)
    run.steps(3, attempt=1)
    stays, new = nodes_of(run, 1)
    assert stays == first and new["host"] == "host2"
    run.wait(lambda: gone(last["agent"]))
    assert cluster.given_back() == [1], "Ray waits for that before it lets the node go"
    place.ok("cancel", run.run_id)


def test_more_nodes_are_taken_at_a_restart_once_they_are_there(cluster: FakeRay, place: Place) -> None:
    cluster.nodes(1)
    run = place.launch("--nodes", "2", "resources.min_nodes=1")
    run.steps(3)
    assert run.run.job(0).nnodes == 1
    cluster.nodes(2)
    os.kill(nodes_of(run)[0]["agent"], signal.SIGKILL)
    run.steps(1, attempt=1)
    assert [node["host"] for node in nodes_of(run, 1)] == ["host0", "host1"]
    place.ok("cancel", run.run_id)


def test_no_secret_is_in_the_words_or_in_the_run(cluster: FakeRay, place: Place) -> None:
    run = place.launch()
    run.steps(2)
    secret = psutil.Process(nodes_of(run)[0]["agent"]).environ()["LAUNCHYARD_HUB_SECRET"]
    words = [word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or []]
    assert not [word for word in words if secret in word]
    for folder, _, names in os.walk(place.runs):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                assert secret.encode() not in file.read(), name
    place.ok("cancel", run.run_id)
