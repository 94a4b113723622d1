"""A node is lost with all that it had in memory: what a neighbour has of it is enough to go on, and nothing shows."""

from __future__ import annotations

import time

import pytest

from tests.ray.runs import OnRay, Site, same_training
from tests.ray.test_survival import other_rank, went_on
from tests.slurm.test_survival import lost

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
EVERY = 10
SETTINGS = ("train.max_steps=400", "checkpoint.every_steps=100000", f"checkpoint.snapshot_steps={EVERY}")


def lose_a_node(run: OnRay, attempt: int, *, start_another: bool) -> None:
    """Its raylet and all processes at once. The next attempt is there afterwards, with the other agents."""
    run.steps(25, attempt=attempt, seconds=90)
    which = other_rank(run, attempt)
    ranks = set(range(run.run.job(attempt).nnodes))
    node, stay = run.node(which, attempt), {rank: run.agent(rank, attempt) for rank in ranks - {which}}
    began = time.time()
    run.cluster.crash_node(node)
    if start_another:
        run.wait(lambda: run.status()["state"] == "pending", 60)
        print(f"{time.time() - began:.1f} s from the loss until the run waited for another node")
        run.cluster.restart_node(node)
        print(f"{time.time() - began:.1f} s until that was there")
    run.wait(lambda: run.run.attempts()[-1:] == [attempt + 1] and run.step(attempt + 1), 100)
    first = next(row for row in run.run.rows("steps") if row["attempt"] == attempt + 1)
    print(f"{first['time'] - began:.1f} s from the loss to the first step again, {lost(run, attempt)} steps lost")
    assert {rank: run.agent(rank, attempt + 1) for rank in ranks - {which}} == stay
    record = run.run.outcome(attempt)
    assert record is not None and record.reason == "node lost", record
    (started,) = (event for event in run.run.events(attempt + 1) if event["event"] == "started")
    assert started["source"] == "memory", run.looks()
    assert run.started(attempt + 1) % EVERY == 0
    assert lost(run, attempt) <= 2 * EVERY, "the next copy waits until the last one has arrived"


def test_nodes_that_are_lost_one_after_another_cost_no_checkpoint(place: Site) -> None:
    """The second one is the node that has got its state from a neighbour."""
    run = place.launch("run", *SETTINGS)
    for attempt in range(2):
        lose_a_node(run, attempt, start_another=False)
    assert [run.saved(attempt) for attempt in range(2)] == [[], []]
    went_on(run, attempts=3)
    same_training(run.run, place.undisturbed("here", *SETTINGS))


def test_the_others_wait_for_a_node_that_is_started_in_the_place_of_one(place: Site) -> None:
    """No node is free: nobody gives up what it has in memory."""
    run = place.launch("run", *SETTINGS, nodes=4)
    lose_a_node(run, 0, start_another=True)
    assert run.saved(0) == []
    went_on(run)
    same_training(run.run, place.undisturbed("here", *SETTINGS, workers=4))
