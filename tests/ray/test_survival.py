"""What happens to nodes and processes, done to real runs: they go on by themselves, and learn the very same."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from launchyard.run.rundir import RunDir
from tests.ray.cluster import HEAD
from tests.ray.runs import FOREVER, LONG, LOSABLE, OnRay, Site, above, end_process, kill, same_training
from tests.slurm.test_survival import lost
from tests.support.small_runs import history

pytestmark = pytest.mark.ray


def went_on(run: OnRay, *, attempts: int = 2) -> None:
    """To the end, as one job, and nothing of it lives."""
    record = run.outcome(seconds=150)
    assert record.outcome == "completed", f"{record}\n{run.looks()}"
    assert run.run.attempts() == list(range(attempts)), run.looks()
    assert run.run.listdir("submissions") == ["0000.job.json", "0000.json"]
    run.nothing_left()


def other_rank(run: OnRay, attempt: int = 0) -> int:
    """A node rank that is not on Ray's head, where the owner is."""
    return next(rank for rank in (1, 0) if run.node(rank, attempt) != HEAD)


# -- nodes are taken -------------------------------------------------------------------------------------------------
def test_a_drained_node_costs_nothing(place: Site, undisturbed: RunDir) -> None:
    """Notice with a deadline: saved in time, and on with other nodes."""
    run = place.launch("run", LONG)
    run.steps(5)
    node = run.node(other_rank(run))
    began = time.monotonic()
    run.cluster.drain(node, 15)
    run.wait(lambda: run.run.outcome(0), 15)
    print(f"{time.monotonic() - began:.1f} s from the notice to the end of the attempt")
    went_on(run)
    assert run.run.outcome(0).reason == "preempted"
    assert lost(run) == 0
    assert node not in [run.node(rank, 1) for rank in range(2)]
    same_training(run.run, undisturbed)
    assert "1 earlier attempt ended by preemption" in run.why()


@pytest.mark.slow
def test_a_node_that_is_killed(place: Site, undisturbed: RunDir) -> None:
    run = place.launch("run", LONG)
    run.steps(25)
    which = other_rank(run)
    node, stays = run.node(which), run.agent(1 - which)
    began = time.monotonic()
    run.cluster.crash_node(node)
    run.wait(lambda: run.run.attempts()[-1:] == [1] and run.step(1), 100)
    print(f"{time.monotonic() - began:.1f} s from the loss to the first step again")
    assert run.agent(1 - which, 1) == stays and run.node(which, 1) != node
    went_on(run)
    assert lost(run) <= LOSABLE
    assert run.run.outcome(0).reason == "node lost", run.run.outcome(0)
    assert node in run.run.outcome(0).message
    same_training(run.run, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_node_that_freezes_and_wakes(place: Site, undisturbed: RunDir) -> None:
    """As a machine that pages, or has no network: given up within seconds, long before Ray does. Others go on, and
    what wakes up there does no harm to the run."""
    run = place.launch("run", LONG)
    run.steps(25)
    which = other_rank(run)
    node, stays = run.node(which), run.agent(1 - which)
    began = time.monotonic()
    with run.cluster.frozen_node(node):
        record = run.wait(lambda: run.run.outcome(0), 30)
        print(f"{time.monotonic() - began:.1f} s from the freeze until it was noticed")
        run.wait(lambda: run.run.attempts()[-1:] == [1] and run.step(1), 200)
        print(f"{time.monotonic() - began:.1f} s from the freeze to the first step again")
    assert record.reason == "node silent" and node in record.message, record
    assert (run.node(1 - which, 1), run.agent(1 - which, 1)) == (run.node(1 - which), stays)
    went_on(run)
    assert lost(run) <= LOSABLE
    same_training(run.run, undisturbed)


# -- something dies --------------------------------------------------------------------------------------------------
VICTIMS: dict[str, Callable[[OnRay], None]] = {
    "worker": lambda run: kill(run.workers(0)[-1]),
    "torchrun": lambda run: kill(above(run.workers(0)[-1], 2)),
    "agent": lambda run: kill(above(run.workers(0)[-1], 3)),
    "first agent": lambda run: kill(above(run.workers(0)[0], 3)),
    "actor": lambda run: end_process(run.actor(1)),
}


@pytest.mark.parametrize(
    "victim", [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("worker", "actor"))) for name in VICTIMS]
)
def test_a_killed_process_is_replaced(victim: str, place: Site, undisturbed: RunDir) -> None:
    run = place.launch("run", LONG)
    run.steps(25)
    began = time.monotonic()
    agents = {run.agent(rank) for rank in range(2)}
    VICTIMS[victim](run)
    run.wait(lambda: run.run.attempts()[-1:] == [1] and run.step(1), 60)
    stayed = agents & {run.agent(rank, 1) for rank in range(2)}
    assert len(stayed) == (2 if victim in ("worker", "torchrun") else 1), "an agent stays for the run"
    print(f"{victim}: {time.monotonic() - began:.1f} s to the first step again")
    went_on(run)
    assert lost(run) <= LOSABLE
    assert run.run.outcome(0).outcome == "failed"
    same_training(run.run, undisturbed)


OWN_CODE = """
import torch.nn.functional as F

FIGURES = ["right"]


def loss(model, tokens, labels):
    logits = model(tokens)
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total, {"right": (logits.argmax(-1) == labels)[labels != -100].sum()}


def on_step(row):
    return {"doubled": 2 * row.loss}
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("code", ["none", pytest.param("own", marks=pytest.mark.slow)])
def test_a_killed_worker_costs_no_agent_and_no_checkpoint(code: str, place: Site) -> None:
    """Memory alone holds the steps; the agents are the same, and torchrun is the one that stood by."""
    words = [FOREVER, "checkpoint.every_steps=100000", "checkpoint.snapshot_steps=5"]
    mine = place.here / "mine.py"
    if code == "own":
        mine.write_text(OWN_CODE)
        words.append("code=mine.py")
    run = place.launch("run", *words)
    mine.unlink(missing_ok=True)  # the run has its own
    run.steps(12)
    run.wait(lambda: len(run.standing_by()) == 2, 90)
    agents = [run.agent(rank) for rank in range(2)]
    began = time.time()
    kill(run.workers(0)[-1])
    run.steps(1, attempt=1)
    first = next(row for row in run.run.rows("steps") if row["attempt"] == 1)
    print(f"{first['time'] - began:.1f} s from the kill to the first step again, {lost(run)} steps lost")
    run.steps(20, attempt=1)
    place.ok("stop", run.run_id)
    run.nothing_left()
    (started,) = (event for event in run.run.events(1) if event["event"] == "started")
    assert (started["source"], run.saved(0)) == ("memory", [])
    assert [run.agent(rank, attempt=1) for rank in range(2)] == agents
    assert run.cluster.site.dashboard.logs(run.job).count("attempt 1 begins with the torchrun that stood by") == 2
    if code == "own":
        mine.write_text(OWN_CODE)
    made = history(run.run)
    assert made == history(on_one_machine(place, len(made), *words, workers=2))[: len(made)]


def owner_of(run: OnRay) -> int:
    return run.run.job(run.run.attempts()[-1]).pid


def test_a_killed_owner_leaves_nothing_and_a_run_to_resume(place: Site, undisturbed: RunDir) -> None:
    """Ray takes it for the end of the job, and ends all actors: nobody trains on unobserved."""
    run = place.launch("run", LONG)
    run.steps(25)
    end_process(owner_of(run))
    began = time.monotonic()
    run.nothing_left(20)
    print(f"{time.monotonic() - began:.1f} s until nothing of it was left")
    run.wait(lambda: run.status()["state"] == "lost", 10)
    assert "its owner" in run.why()
    place.ok("resume", run.run_id)
    assert run.outcome(attempt=1).outcome == "completed"
    same_training(run.run, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_head_that_comes_back(place: Site) -> None:
    """All that Ray knew is gone with it; what the run saved is not. Other nodes give up a little later.

    `launch monitor --resume` sees that, and sends the next job once Ray answers again.
    """
    longer = "train.max_steps=800"
    run = place.launch("run", longer)
    run.steps(25)
    cluster = run.cluster
    argv = [sys.executable, "-m", "launchyard", "monitor", "--resume", "--every", "1", "--port", "0"]
    watching = subprocess.Popen(argv, cwd=place.here, env=place.env, text=True, stdout=subprocess.PIPE)
    try:
        time.sleep(5)  # it has seen the run
        cluster.crash_node(HEAD)
        began = time.monotonic()
        run.wait(lambda: not run.marked_pids(), 60)
        print(f"{time.monotonic() - began:.1f} s until nothing of it was left")
        cluster.settle()
        run.wait(lambda: 1 in run.run.attempts(), 150)
        assert run.outcome(attempt=1).outcome == "completed"
    finally:
        watching.terminate()
        said, _ = watching.communicate(timeout=20)
    assert f"resumed  {run.run_id} from step" in said
    assert lost(run) <= LOSABLE
    same_training(run.run, place.undisturbed("here", longer))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_head_that_dies_with_the_run_on_other_nodes(place: Site) -> None:
    """Nobody tells these nodes. They train on until they give their head up; what they saved meanwhile counts."""
    longer = "train.max_steps=2000"
    place.write_cluster(resources={"node:__internal_head__": 0.5})
    place.launch("filler", FOREVER, nodes=1).steps(1)
    place.write_cluster()
    run = place.launch("run", longer)
    run.steps(25)
    assert HEAD not in (run.node(0), run.node(1))
    run.cluster.crash_node(HEAD)
    began, workers = time.monotonic(), run.marked_pids()
    assert workers
    run.wait(lambda: not run.marked_pids(), 100)
    print(f"{time.monotonic() - began:.1f} s until nothing of it was left")
    run.cluster.settle()
    run.wait(lambda: run.status()["state"] == "lost", 80)
    place.ok("resume", run.run_id)
    assert run.outcome(attempt=1, seconds=150).outcome == "completed"
    assert lost(run) <= LOSABLE
    same_training(run.run, place.undisturbed("here", longer))


# -- fewer nodes -----------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_fewer_nodes_will_do_and_more_are_taken_when_they_are_there(place: Site) -> None:
    """The same tokens in every step on 4, 2 and 4 nodes again (3 cannot cut the batch), as on one machine."""
    run = place.launch("run", FOREVER, "resources.min_nodes=1", nodes=4)
    run.steps(25)
    gone = run.node(next(rank for rank in range(4) if run.node(rank) != HEAD))
    run.cluster.crash_node(gone)
    run.wait(lambda: run.run.attempts()[-1:] == [1] and run.step(1), 100)
    assert run.run.job(1).nnodes == 2
    assert "going on with 2 of 4 nodes" in run.cluster.site.dashboard.logs(run.job)
    run.cluster.restart_node(gone)
    kill(run.workers(1)[-1])
    run.wait(lambda: run.run.attempts()[-1:] == [2] and run.step(2), 100)
    assert run.run.job(2).nnodes == 4
    place.ok("stop", run.run_id)
    same_tokens(run.run, on_one_machine(place, last_step(run.run), workers=4))


def last_step(run: RunDir) -> int:
    return max(row["step"] for row in run.rows("steps"))


def on_one_machine(place: Site, steps: int, *words: str, workers: int) -> RunDir:
    """The run that goes on for ever, for at least so many steps."""
    run = RunDir(str(place.here / "here"))
    place.urls.append(run.url)
    place.ok("tiny.yaml", "--run-url", run.url, "--detach", f"resources.nproc_per_node={workers}", FOREVER, *words)
    place.cluster.wait(lambda: len(list(run.rows("steps"))) > steps, f"{steps} steps", 120)
    place.ok("stop", run.url)
    return run


def same_tokens(one: RunDir, other: RunDir) -> None:
    """As far as the shorter has come: what every step saw, and nearly the same loss."""
    pairs = list(zip(one.rows("steps"), other.rows("steps"), strict=False))
    assert len(pairs) > 50
    for left, right in pairs:
        assert [left[key] for key in ("step", "data_hash", "tokens_seen")] == [
            right[key] for key in ("step", "data_hash", "tokens_seen")
        ]
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_run_that_waits_to_go_on_can_be_stopped(place: Site) -> None:
    """A node is lost and there is no other: it waits, says why, and keeps what it has saved."""
    run = place.launch("run", FOREVER, nodes=4)
    run.steps(25)
    gone = run.node(next(rank for rank in range(4) if run.node(rank) != HEAD))
    run.cluster.crash_node(gone)
    run.wait(lambda: run.status()["state"] == "pending", 60)
    assert "of 3 nodes here" in run.why() or "of 3 such nodes" in run.why()
    place.ok("stop", run.run_id)
    state = run.status()
    assert (state["state"], state["checkpoint"]) == ("stopped", run.saved(0)[-1])
    assert run.run.attempts() == [0]
    run.nothing_left()
