"""What a site does to a job, done to real runs: they go on by themselves, and nothing shows in what they learn."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launchyard.run.rundir import RunDir
from tests.slurm.cluster import QUICK, SlurmCluster, frozen, running_cluster
from tests.slurm.runs import FOREVER, LONG, LOSABLE, OnSite, Site, above, kill, same_training

pytestmark = pytest.mark.slurm


def preempt(cluster: SlurmCluster) -> None:
    """A job of a partition that comes first takes every node, for a second."""
    cluster.sbatch("exec sleep 1", "--partition=prod", f"--nodes={len(cluster.nodes)}", "--exclusive")


def went_on(run: OnSite, *, attempts: int = 2) -> None:
    """To the end, as one job, and nothing of it lives."""
    record = run.outcome()
    assert record.outcome == "completed", record
    assert run.run.attempts() == list(range(attempts))
    assert run.run.listdir("submissions") == ["0000.job.json", "0000.json"]
    run.nothing_left()


def lost(run: OnSite, attempt: int = 0) -> int:
    """Steps that an attempt made and the next one that began made again."""
    reached = max((row["step"] for row in rows_of(run, attempt)), default=run.started(attempt))
    starts = run.run.starts()
    return reached - starts[min(number for number in starts if number > attempt)]


def rows_of(run: OnSite, attempt: int) -> list[dict]:  # type: ignore[type-arg]
    """All rows that an attempt wrote, whether they survive or not."""
    from launchyard.run.rows import is_row
    from launchyard.storage.damage import parse_lines

    names = [name for name in run.run.listdir("metrics") if name.startswith(f"steps-{attempt:04d}")]
    return [row for name in names for row in parse_lines(run.run.read_bytes(f"metrics/{name}"), is_row)[0]]


def nodes_of(run: OnSite) -> list[str]:
    """Those of its job now; the first has the owner."""
    return run.cluster.run("scontrol", "show", "hostnames", run.cluster.job(run.job)["NodeList"]).split()


# -- the scheduler takes the nodes -----------------------------------------------------------------------------------
def test_preemption_with_grace_costs_nothing(place: Site, undisturbed: RunDir) -> None:
    run = place.launch("run", LONG)
    run.steps(5)
    preempt(run.cluster)
    run.wait(lambda: run.run.outcome(0), 20)
    run.wait(lambda: run.status()["state"] == "pending", 20)
    went_on(run)
    assert run.run.outcome(0).reason == "preempted"
    assert lost(run) == 0
    assert run.cluster.job(run.job)["Restarts"] == "1"
    same_training(run.run, undisturbed)
    assert "1 earlier attempt ended by preemption" in run.why()


@pytest.mark.slow
def test_a_run_that_waits_to_go_on_can_be_stopped(place: Site) -> None:
    """Preempted and saved, it is in the queue again, where nothing runs that could save."""
    run = place.launch("run", FOREVER)
    run.steps(5)
    run.cluster.run("scancel", "--signal=USR1", str(run.job))
    run.wait(lambda: run.status()["state"] == "pending", 20)
    assert "before it starts again" in run.why()
    place.ok("stop", run.run_id)
    state = run.status()
    assert (state["state"], state["reason"], state["checkpoint"]) == ("stopped", "cancelled", run.saved(0)[-1])
    assert state["step"] == state["checkpoint"]
    assert run.run.attempts() == [0]


REASONS: dict[str, Callable[[OnSite], object]] = {
    "requeue": lambda run: run.cluster.scontrol("requeue", str(run.job)),
    "TERM": lambda run: run.cluster.run("scancel", "--signal=TERM", str(run.job)),
    "USR1": lambda run: run.cluster.run("scancel", "--signal=USR1", str(run.job)),
}


@pytest.mark.parametrize("reason", REASONS)
def test_notices_by_hand_cost_nothing(reason: str, place: Site, undisturbed: RunDir) -> None:
    run = place.launch("run", LONG)
    run.steps(5)
    REASONS[reason](run)
    went_on(run)
    assert lost(run) == 0
    assert run.cluster.job(run.job)["Restarts"] == "1"
    same_training(run.run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"grace_seconds": 0, "kill_wait_seconds": 0},
        {"user_signal": True},
        {"proctrack": "cgroup"},
        {"accounting": True},
    ],
    ids=["no grace", "user signal", "cgroup", "accounting"],
)
def test_sites_that_preempt_otherwise(settings: dict[str, object], tmp_path: Path, undisturbed: RunDir) -> None:
    from launchyard.launcher.sandbox.slurm.host import FREEZER

    if "proctrack" in settings and not FREEZER.is_dir():
        pytest.skip("needs the freezer of version 1 of control groups")
    if "accounting" in settings and shutil.which("mariadb-install-db") is None:
        pytest.skip("needs slurmdbd and mariadb-server")
    with running_cluster(QUICK.model_copy(update={**settings, "nodes": 2})) as cluster:
        place = Site(tmp_path, cluster)
        try:
            run = place.launch("run", LONG, "checkpoint.every_steps=10")
            run.steps(15)
            preempt(cluster)
            went_on(run)
            assert lost(run) <= (10 if "grace_seconds" in settings else 0)
            same_training(run.run, undisturbed)
        finally:
            place.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_suspended_then_refused_a_requeue_then_cancelled(place: Site, undisturbed: RunDir) -> None:
    """What sites do that is no plain requeue, one after another to one run: nothing of it shows in what it learns."""
    run = place.launch("run", LONG)
    run.steps(5)
    first = run.job
    run.cluster.scontrol("suspend", str(first))
    assert run.status()["state"] == "suspended"
    run.cluster.scontrol("resume", str(first))
    run.wait(lambda: run.status()["state"] == "running", 20)

    run.cluster.scontrol("update", f"JobId={first}", "Requeue=0")
    preempt(run.cluster)
    run.wait(lambda: run.job != first, 30)
    assert run.status()["job_id"] == str(run.job)
    run.steps(5, attempt=1)
    assert (run.run.outcome(0).reason, lost(run)) == ("preempted", 0)

    run.cluster.scontrol("update", "PartitionName=spot", "PreemptMode=CANCEL")
    try:
        preempt(run.cluster)
        record = run.outcome()
    finally:
        run.cluster.scontrol("update", "PartitionName=spot", "PreemptMode=REQUEUE")
    assert (record.outcome, run.run.attempts(), lost(run, 1)) == ("completed", [0, 1, 2], 0), run.looks()
    assert run.cluster.job(run.job)["Restarts"] == "1"
    run.nothing_left()
    same_training(run.run, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_time_limit_is_a_preemption(place: Site) -> None:
    """Attempts of a minute, until a person has seen enough."""
    run = place.launch("run", FOREVER, "resources.time_limit=00:01:00", "checkpoint.every_steps=1000")
    run.wait(lambda: run.run.attempts()[-1:] >= [2] and run.step(run.run.attempts()[-1]) > 0, 240)
    ended = run.run.attempts()[:-1]
    assert {run.run.outcome(attempt).outcome for attempt in ended} == {"stopped"}, run.looks()
    assert [lost(run, attempt) for attempt in ended] == [0] * len(ended)
    place.ok("stop", run.run_id)
    run.nothing_left()
    assert run.status()["state"] == "stopped"


# -- something dies --------------------------------------------------------------------------------------------------
VICTIMS: dict[str, Callable[[OnSite], None]] = {
    "worker": lambda run: kill(run.workers(0)[-1]),
    "torchrun": lambda run: kill(above(run.workers(0)[-1], 2)),
    "agent": lambda run: kill(above(run.workers(0)[-1], 3)),
    "first agent": lambda run: kill(above(run.workers(0)[0], 3)),
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_killed_process_is_replaced_inside_the_allocation(victim: str, place: Site, undisturbed: RunDir) -> None:
    run = place.launch("run", LONG)
    run.steps(25)
    began = time.monotonic()
    agents = run.above("launchyard.launcher.backends.slurm.agent")
    VICTIMS[victim](run)
    run.wait(lambda: run.step(1), 60)
    stayed = {process.pid for process in run.above("launchyard.launcher.backends.slurm.agent")} & {
        a.pid for a in agents
    }
    assert len(stayed) == 2 - ("agent" in victim), "an agent stays for the job"
    print(f"{victim}: {time.monotonic() - began:.1f} s to the first step again")
    went_on(run)
    assert "Restarts=0" in run.cluster.scontrol("show", "job", str(run.job))
    assert lost(run) <= LOSABLE
    assert run.run.outcome(0).outcome == "failed"
    same_training(run.run, undisturbed)


def test_a_killed_owner_leaves_a_run_to_resume(place: Site, undisturbed: RunDir) -> None:
    """SLURM takes it for the end of the job, and nobody is left who could know better."""
    run = place.launch("run", LONG)
    run.steps(25)
    (owner,) = run.above("launchyard.launcher.backends.slurm.owner")
    kill(owner)
    run.wait(lambda: run.status()["state"] == "lost", 10)
    run.nothing_left()
    assert "its owner" in run.why()
    place.ok("resume", run.run_id)
    record = run.outcome()
    assert record.outcome == "completed"
    same_training(run.run, undisturbed)


@pytest.mark.parametrize("which", [0, 1], ids=["first", "last"])
def test_an_agent_that_freezes_is_given_up_within_seconds(which: int, place: Site, undisturbed: RunDir) -> None:
    """SLURM sees nothing of it. Its node gets another agent, which first ends what is frozen there."""
    run = place.launch("run", LONG)
    run.steps(25)
    agent = above(run.workers(0)[which], 3)
    began = time.monotonic()
    with frozen([agent, *agent.children(recursive=True)]):
        record = run.wait(lambda: run.run.outcome(0), 15)
        print(f"{time.monotonic() - began:.1f} s from the freeze until it was noticed")
        assert time.monotonic() - began < 12
        run.wait(lambda: run.step(1), 90)
        assert not agent.is_running() or agent.status() == "zombie"
    assert (record.reason, f"node {which} of the run on {nodes_of(run)[which]}" in record.message) == (
        "node silent",
        True,
    )
    went_on(run)
    assert "was silent for" in run.why()
    assert lost(run) <= LOSABLE
    same_training(run.run, undisturbed)


def test_a_spare_node_takes_the_place_of_one_that_crashes(place: Site, undisturbed: RunDir) -> None:
    """At once, in the same allocation and with as many workers, from what a neighbour has of its memory."""
    every = 10
    settings = ("checkpoint.every_steps=100", f"checkpoint.snapshot_steps={every}")
    run = place.launch("run", LONG, "resources.spare_nodes=1", *settings)
    run.steps(25)
    first, lost_node, spare = nodes_of(run)
    began = time.monotonic()
    run.cluster.crash_node(lost_node)
    run.wait(lambda: run.run.outcome(0), 30)
    print(f"{time.monotonic() - began:.1f} s from the crash until it was noticed")
    run.wait(lambda: run.step(1), 90)
    print(f"{time.monotonic() - began:.1f} s from the crash to the first step again")
    assert [node["node"] for node in run.run.read_json("attempts/0001/nodes.json")] == [first, spare]
    assert run.outcome().outcome == "completed"
    assert run.run.attempts() == [0, 1] and run.cluster.job(run.job)["Restarts"] == "0"
    print(f"{lost(run)} steps lost, on from step {run.started(1)}")
    assert run.started(1) >= every and run.started(1) % every == 0, "no checkpoint is there yet"
    assert lost(run) <= 2 * every, "the next copy waits until the last one has arrived"
    assert f"Attempt 1 went on from step {run.started(1)} in memory" in run.why()
    same_training(run.run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["with the owner", "without the owner"])
def test_a_node_that_crashes(which: int, place: Site, undisturbed: RunDir) -> None:
    run = place.launch("run", LONG)
    run.steps(25)
    node = nodes_of(run)[which]
    run.cluster.crash_node(node)
    record = run.outcome(seconds=160)
    assert record.outcome == "completed"
    assert node not in nodes_of(run)
    same_training(run.run, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("which", [0, 1], ids=["with the owner", "without the owner"])
def test_a_node_that_freezes_and_wakes(which: int, place: Site, undisturbed: RunDir) -> None:
    """As a machine that pages, or has no network: others go on, and what wakes up there does no harm to the run."""
    run = place.launch("run", LONG)
    run.steps(25)
    node = nodes_of(run)[which]
    began = time.monotonic()
    with run.cluster.frozen_node(node):
        run.wait(lambda: run.run.attempts() != [0] and run.step(run.run.attempts()[-1]), 200)
        print(f"{time.monotonic() - began:.1f} s from the freeze to the first step again")
    record = run.outcome(seconds=160)
    assert record.outcome == "completed"
    # One more in vain where an agent is sought on the frozen node, or where its srun wakes and ends the new step 0.
    assert len(run.run.attempts()) <= 3, run.looks()
    assert lost(run) <= LOSABLE
    run.nothing_left()
    same_training(run.run, undisturbed)
