"""A run on Ray from its submission to its end, as the person sees it who launched it."""

from __future__ import annotations

import importlib.metadata
import json
import time
from pathlib import Path

import pytest

from launchyard.run.rundir import RunDir
from tests.ray.cluster import RAY
from tests.ray.runs import FOREVER, LONG, LOSABLE, OnRay, Site, same_training
from tests.support.shell import cast_shadows

pytestmark = pytest.mark.ray
RIGHT_SECONDS = 5.0  # in which what is shown is what is


@pytest.mark.parametrize("nodes", [2, pytest.param(4, marks=pytest.mark.slow)], ids=["2 nodes", "4 nodes"])
def test_a_run_is_the_same_as_on_one_machine(nodes: int, place: Site) -> None:
    cast_shadows(place.here)
    installed = importlib.metadata.version("ray")  # `make test-ray-oldest` has another one here
    assert place.cluster.site.dashboard.version()["ray_version"] == installed
    run = place.launch("run", "train.max_steps=30", nodes=nodes)
    assert run.outcome().outcome == "completed"
    run.nothing_left()
    same_training(run.run, place.undisturbed("here", "train.max_steps=30", workers=nodes))
    plan = run.run.read_json("plan.json")
    assert (plan["nnodes"], plan["world_size"]) == (nodes, nodes)
    lines = place.ok("logs", run.run_id).splitlines()
    assert {line.partition(" |")[0].strip() for line in lines} >= {f"rank {rank}" for rank in range(nodes)}
    assert {run.node(rank) for rank in range(nodes)} <= set(run.cluster.nodes)
    assert len({run.node(rank) for rank in range(nodes)}) == nodes
    assert "completed all 30 steps" in run.why()
    assert run.status()["state"] == "completed"
    assert run.cluster.site.dashboard.ask(run.job).scheduler_state == "SUCCEEDED"


def test_a_run_that_finds_no_room_says_so_and_can_be_taken_back(place: Site) -> None:
    """Within seconds: what is asked, what there is; status, why, logs and stop know no attempt."""
    place.write_cluster(cpus=3)
    run = place.launch("run", FOREVER)
    began = time.monotonic()
    run.wait(lambda: "3 CPU each" in (run.status()["queue"] or ""), 30)
    print(f"{time.monotonic() - began:.1f} s until it says why it waits")
    state = run.status()
    assert (state["state"], state["alive"], state["job_id"]) == ("pending", True, run.job)
    assert "it needs 2 nodes with 3 CPU each; of 4 nodes here 0 have that much (at most 1 CPU)" in state["queue"]
    assert f"waits in the queue as job {run.job}: " in run.why()
    assert "why it waits" in place.ok("logs", run.run_id, code=2)
    assert "queued already: job" in place.ok("resume", run.run_id, code=2)
    place.ok("stop", run.run_id)
    assert run.status()["state"] == "stopped"
    run.nothing_left()
    assert run.run.attempts() == []
    place.write_cluster()
    place.ok("resume", run.run_id, "--nodes", "1", "train.max_steps=10")
    assert run.status()["state"] in ("pending", "starting", "running")
    assert run.outcome().outcome == "completed"
    assert run.run.job(0).nnodes == 1


def test_a_run_waits_for_another(place: Site) -> None:
    """Nodes that are in use: said, and taken when they are free."""
    first = place.launch("first", FOREVER, nodes=4)
    first.steps(3)
    second = place.launch("second", "train.max_steps=10", nodes=2)
    second.wait(lambda: "of 4 such nodes 0 are free" in (second.status()["queue"] or ""), 30)
    place.ok("stop", first.run_id)
    assert second.outcome().outcome == "completed"


def test_a_sweep_of_one_at_once(place: Site) -> None:
    """No job waits for another one on Ray: the command starts each point at the end of the one before."""
    words = ["train.max_steps=[6,5]", "--at-once", "1", "--run-url", str(place.here / "runs/sweep"), "--json"]
    told = json.loads(place.ok("sweep", "tiny.yaml", "--cluster", "site", "--nodes", "1", *words))
    place.urls += [point["url"] for point in told["points"]]
    assert [(point["state"], point["step"]) for point in told["points"]] == [("completed", 6), ("completed", 5)]
    first, second = (OnRay(place, RunDir(point["url"]), point["run_id"]) for point in told["points"])
    ended = first.run.outcome()
    assert ended is not None and second.run.job(0).created > ended.time
    first.nothing_left()


def test_stop_then_resume_on_another_number_of_nodes(place: Site, undisturbed: RunDir) -> None:
    run = place.launch("run", LONG)
    run.steps(5)
    place.ok("stop", run.run_id)
    run.nothing_left()
    state = run.status()
    assert (state["state"], state["reason"], state["resumable"]) == ("stopped", "stop", True)
    said = json.loads(place.ok("resume", run.run_id, "--nodes", "1", "resources.nproc_per_node=2", "--json"))
    assert said["from_step"] == state["step"]
    assert run.outcome(attempt=1).outcome == "completed"
    assert run.run.job(1).nnodes == 1
    same_training(run.run, undisturbed)


def ray_job_stop(run: OnRay) -> None:
    done = run.cluster.site.run(*RAY, "job", "stop", "--no-wait", "--address=http://127.0.0.1:8265", run.job)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ray_job_stop_saves_first(place: Site) -> None:
    """Ray's own command: TERM for the owner, and time enough for an agreed save."""
    run = place.launch("run", FOREVER)
    run.steps(25)
    ray_job_stop(run)
    run.wait(lambda: not run.status()["alive"], 30)
    state = run.status()
    assert (state["state"], state["resumable"]) == ("stopped", True), state
    assert state["checkpoint"] == state["step"] == run.saved(0)[-1]
    run.nothing_left()


def test_what_is_cancelled_is_over(place: Site) -> None:
    """Shown at once, resumable, not started again, and no process of it lives on any node."""
    run = place.launch("run", FOREVER)
    run.steps(25)
    place.ok("cancel", run.run_id)
    began = time.monotonic()
    run.wait(lambda: not run.status()["alive"], 20)
    assert time.monotonic() - began < RIGHT_SECONDS
    state = run.status()
    assert (state["state"], state["resumable"]) == ("stopped", True), state
    run.nothing_left(3.0)
    assert "cancelled" in run.why()
    assert run.run.attempts() == [0]


@pytest.mark.parametrize(
    "kind", ["kill", pytest.param("preempt", marks=pytest.mark.slow), pytest.param("node-loss", marks=pytest.mark.slow)]
)
def test_a_drill(kind: str, place: Site) -> None:
    """What it blows is on a node; what it tells is what the run directory says."""
    run = place.launch("run", FOREVER)
    run.steps(25)
    told = json.loads(place.ok("drill", kind, run.run_id, "--json"))
    assert (told["attempt"], told["next_attempt"]) == (0, 1)
    assert told["steps_lost"] <= (0 if kind == "preempt" else LOSABLE)
    assert told["resumed_step"] == run.started(1)
    assert (told["committed_seconds"] is not None) == (kind == "preempt")
    place.ok("cancel", run.run_id)
    run.nothing_left()


def test_the_plan_is_what_ray_is_sent(place: Site) -> None:
    plan = json.loads(place.ok("tiny.yaml", "--cluster", "site", "--nodes", "2", "--dry-run", "--json"))["plan"]
    told = json.loads(plan["script"])
    assert told["bundle"] == {"CPU": 1}
    assert "-P -u -m launchyard.launcher.backends.ray.owner" in told["request"]["entrypoint"]
    assert not Path(place.here / "runs").exists()
