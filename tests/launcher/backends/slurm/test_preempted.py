"""What sites do to a job besides a plain requeue: refuse it, cancel, suspend, fill the disk; and a silent owner."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launchyard.errors import UserError
from launchyard.launcher.agent.ownership import attempts_of, claim_next
from launchyard.launcher.backends.base import judge_job
from launchyard.launcher.backends.slurm.request import AGENT
from launchyard.launcher.backends.slurm.steps import AGENT_OF_AN_ATTEMPT, on_one_node, task_count, that_stays
from launchyard.run.records import Job, Shape
from tests.launcher.backends.slurm.test_runs import notice, reached, started
from tests.support.fake_slurm import OVER, FakeSlurm
from tests.support.standin import make_run
from tests.support.typed import Place


def test_where_the_site_requeues_nothing_it_goes_on_as_a_new_job(slurm: FakeSlurm, place: Place) -> None:
    """Which is the run while it still waits."""
    run = place.launch()
    run.steps(3)
    first = run.job
    slurm.hold("Priority")
    slurm.fail("scontrol requeue", stderr=f"Requested operation is presently disabled for job {first}")
    notice(run)
    run.wait(lambda: slurm.job(first)["state"] in OVER)
    state = run.status()
    assert (state["state"], state["alive"], state["resumable"]) == ("pending", True, False)
    assert state["job_id"] == run.job != first
    assert f"waits in the queue as job {run.job}: other jobs have a higher priority" in run.why()
    assert f"queued already: job {run.job} waits" in place.ok("resume", run.run_id, code=2)
    slurm.start(run.job)
    run.steps(3, attempt=1)
    assert [one.attempt for one in attempts_of(run.run, run.job)] == [1, 0], "failures count over both jobs"
    assert started(run, 1) == reached(run, 0)
    assert slurm.job(run.job)["dependency"] == "singleton", "not before the first has left"
    assert slurm.job(first)["restarts"] == 0
    place.ok("cancel", run.run_id)


@pytest.mark.slow
def test_a_job_that_waits_in_place_of_another_can_be_cancelled(slurm: FakeSlurm, place: Place) -> None:
    run = place.launch()
    run.steps(3)
    first = run.job
    slurm.hold("Priority")
    slurm.fail("scontrol requeue", stderr="Requested operation is presently disabled")
    notice(run)
    run.wait(lambda: slurm.job(first)["state"] in OVER)
    place.ok("cancel", run.run_id)
    assert slurm.job(run.job)["state"] == "CANCELLED"
    state = run.status()
    assert (state["state"], state["resumable"], state["checkpoint"]) == ("stopped", True, reached(run, 0))


def test_a_site_that_refuses_both_leaves_a_run_to_resume(slurm: FakeSlurm, place: Place) -> None:
    """The owner's word says what SLURM said, and no submission stays that nobody has taken."""
    run = place.launch()
    run.steps(3)
    slurm.fail("scontrol requeue", stderr="Requested operation is presently disabled")
    slurm.fail("sbatch", stderr="sbatch: error: Batch job submission failed: Job violates accounting/QOS policy")
    notice(run)
    record = run.outcome()
    assert record.outcome == "failed"
    assert "Job violates accounting/QOS policy" in record.message
    assert run.run.listdir("submissions") == ["0000.job.json", "0000.json"]
    run.wait(lambda: run.status()["resumable"])
    assert "Job violates accounting/QOS policy" in run.why()


def test_a_preempted_run_is_put_back_where_slurm_cancels(slurm: FakeSlurm, place: Place) -> None:
    """PreemptMode=CANCEL: SLURM is ending the job already, as for scancel, and nobody has asked for that."""
    run = place.launch()
    run.steps(3)
    slurm.take_nodes(run.job, mode="CANCEL")
    run.steps(3, attempt=1)
    assert run.run.outcome(0).reason == "preempted"
    assert (slurm.job(run.job)["restarts"], started(run, 1)) == (1, reached(run, 0))
    place.ok("cancel", run.run_id)


def test_a_notice_before_the_agents_can_hear_is_no_failure(slurm: FakeSlurm, place: Place) -> None:
    """It kills them while they import: the job is put back, and no failure is counted."""
    run = place.launch("resources.max_failures=0")
    run.wait(lambda: slurm.job(run.job)["tasks"])
    notice(run)
    run.steps(3, attempt=1)
    assert (run.run.outcome(0).outcome, run.run.outcome(0).reason) == ("stopped", "preempted")
    assert slurm.job(run.job)["restarts"] == 1
    place.ok("cancel", run.run_id)


def test_a_suspended_run_is_neither_lost_nor_ended(slurm: FakeSlurm, place: Place) -> None:
    run = place.launch()
    run.steps(3)
    subprocess.run(["scontrol", "suspend", run.job], check=True)
    then = time.time() - 3600
    os.utime(run.run.path("attempts/0000/heartbeat.json"), (then, then))
    state = run.status()
    assert (state["state"], state["alive"], state["resumable"]) == ("suspended", True, False)
    assert "attempt 0 is suspended" in run.why() and "scontrol resume" in run.why()
    assert "Now it is suspended" in place.ok("stop", run.run_id), "it is asked, and nobody waits for ever"
    subprocess.run(["scontrol", "resume", run.job], check=True)
    assert run.outcome().reason == "stop"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Shared by all nodes, with 32 MB."""
    place = tmp_path / "shared"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("requeues", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["requeued", "a new job"])
def test_a_preempted_run_is_put_back_with_its_disk_full(
    requeues: bool, slurm: FakeSlurm, place: Place, small_disk: Path
) -> None:
    """It cannot save, nor say how it ended; when it starts again there is room, and it goes on from what it has."""
    place.workers_do(save_every=2)
    place.write_cluster(storage=str(small_disk))
    place.runs = small_disk
    run = place.launch()
    run.steps(5)
    first = run.job
    if not requeues:
        slurm.fail("scontrol requeue", stderr="Requested operation is presently disabled")
    slurm.hold("BeginTime")
    filler = small_disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], capture_output=True, check=False)
    subprocess.run(["sbatch", "--partition=prod"], input="#!/bin/sh\n", text=True, check=True, capture_output=True)
    ours = run.wait(lambda: next((one for one in slurm.jobs() if waits_again(slurm, one, first)), None))
    assert run.run.outcome() is None
    filler.unlink()
    slurm.start(ours)
    run.steps(3, attempt=1)
    assert started(run, 1) >= 4
    place.ok("cancel", run.run_id)


def waits_again(slurm: FakeSlurm, job_id: str, first: str) -> bool:
    """The first job, put back, or another one of the same run."""
    job = slurm.job(job_id)
    return job["name"] == slurm.job(first)["name"] and job["state"] == "PENDING" and job["batch"] is None


@pytest.mark.slow
def test_a_node_without_commands_waits_for_slurm_and_goes_on_where_it_is(
    slurm: FakeSlurm, place: Place, tmp_path: Path
) -> None:
    """It can ask nobody to start the job again: a site that takes the nodes does, and with any other it keeps them."""
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "srun").symlink_to(slurm.programs / "srun")
    place.write_cluster(setup=[f"export PATH={bare}"])
    run = place.launch()
    run.steps(3)
    slurm.take_nodes(run.job)
    run.steps(3, attempt=1)
    assert (slurm.job(run.job)["restarts"], started(run, 1)) == (1, reached(run, 0))
    notice(run)
    run.steps(3, attempt=2)
    assert (slurm.job(run.job)["restarts"], started(run, 2)) == (1, reached(run, 1))
    assert "has neither scontrol nor sbatch" in run.looks()
    place.ok("cancel", run.run_id)


def test_a_resumed_job_on_such_a_node_waits_for_the_lease_of_the_last_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue is not there to say that it is dead, and its heart beat a moment ago."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("launchyard.launcher.agent.ownership.TAKEOVER_SECONDS", 0.1)
    monkeypatch.setattr("launchyard.launcher.backends.base.LEASE_SECONDS", 1.0)
    run = make_run(tmp_path, scheduler="slurm")
    shape = Shape(nproc_per_node=1, device="cpu")
    last = {"host": "node7", "pid": 1, "pid_started": 0.0, "created": 0.0, **shape.model_dump()}
    run.claim_attempt(Job(attempt=0, backend="slurm", job_id="1", **last))
    claim: dict[str, Any] = {"backend": "slurm", "job_id": "2", "shape": shape, "overrides": {}, "judge": judge_job}
    with pytest.raises(UserError, match="process 1 on node7"):
        claim_next(run, **claim)
    assert claim_next(run, **claim, patience=5.0).attempt == 1


# -- the witnesses disagree ------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_run_whose_owner_is_silent_is_no_running_one(slurm: FakeSlurm, place: Place) -> None:
    """SLURM sees its process, and that hangs: nobody may take the run, and a person may end it."""
    run = place.launch()
    run.steps(3)
    owner = run.run.job(0).pid
    os.kill(owner, signal.SIGSTOP)
    then = time.time() - 3600
    os.utime(run.run.path("attempts/0000/heartbeat.json"), (then, then))
    assert run.status()["state"] == "starting", "this start of the job is younger than the heartbeat"
    with slurm.site.change() as state:
        state["jobs"][run.job]["start"] = then - 1
    seen = run.status()
    assert (seen["state"], seen["alive"], seen["resumable"]) == ("unknown", True, False)
    assert "SLURM says RUNNING, and its owner has not been heard of for 1h" in seen["queue"]
    assert "attempt 0 is silent" in run.why() and "has not been heard of" in run.why()
    assert "has not been heard of" in place.ok("resume", run.run_id, code=2)
    os.kill(owner, signal.SIGCONT)
    run.wait(lambda: run.status()["state"] == "running")
    place.ok("cancel", run.run_id)


def test_a_job_that_an_older_launcher_has_queued_gets_agents_that_stay() -> None:
    srun = ["srun", "--nodes=2", "--ntasks=2", "--wait=60", "--label", "/p", "-P", "-u", "-m"]
    older = [*srun, AGENT_OF_AN_ATTEMPT, "/r", "--attempt={attempt}", "--nnodes=2", "--term-is-notice"]
    words = that_stays(older)
    assert words == [*srun[:3], "--wait=0", *srun[4:], AGENT, "/r"] and that_stays(words) == words
    assert task_count(words) == 2
    alone = on_one_node(words, "node7")
    assert {"--nodes=1", "--ntasks=1", "--nodelist=node7", "--overlap"} < set(alone) and alone[-2:] == [AGENT, "/r"]
