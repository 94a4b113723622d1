"""Runs on SLURM from their submission to their end, without one: the commands are stand-ins, and so is the worker."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launchyard.errors import LaunchError
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.backends.slurm import backend, client
from launchyard.run.records import SCANCEL
from tests.support.fake_slurm import OVER, FakeSlurm
from tests.support.typed import Launched, Place


def started(run: Launched, attempt: int) -> int:
    """The step that an attempt began with."""
    event = run.wait(lambda: next((e for e in run.run.events(attempt) if e["event"] == "started"), None))
    return int(event["step"])


def notice(run: Launched) -> None:
    """As SLURM warns before a time limit: all agents, and not the owner."""
    subprocess.run(["scancel", "--signal=USR1", run.job], check=True)


def reached(run: Launched, attempt: int) -> int:
    return max(row["step"] for row in run.run.rows("steps") if row["attempt"] == attempt)


# -- a life ----------------------------------------------------------------------------------------------------------
def test_a_run_waits_with_a_reason_then_runs_and_completes(slurm: FakeSlurm, place: Place) -> None:
    """With the real agent and torchrun."""
    slurm.real_agents()
    place.workers_do(steps=12)
    slurm.hold("Resources")
    run = place.launch()
    state = run.status()
    assert (state["state"], state["alive"], state["job_id"]) == ("pending", True, run.job)
    assert state["queue"] == "the nodes it needs are in use (Resources)"
    assert f"waits in the queue as job {run.job}: the nodes it needs are in use" in run.why()
    assert "queued already: job" in place.ok("resume", run.run_id, code=2)
    slurm.start(run.job)
    record = run.outcome()
    assert (record.outcome, record.step) == ("completed", 12)
    run.wait(lambda: slurm.job(run.job)["state"] == "COMPLETED")
    assert run.status()["state"] == "completed"
    assert "completed all 12 steps" in run.why()
    run.nothing_left()


def test_what_waits_can_be_taken_back(slurm: FakeSlurm, place: Place) -> None:
    """And a resume of it begins anew, as another job."""
    place.workers_do(steps=3)
    slurm.hold("Priority")
    run = place.launch()
    first = run.job
    assert "stopped" in place.ok("stop", run.run_id)
    assert slurm.job(first)["state"] == "CANCELLED"
    assert run.status()["state"] == "stopped" and run.run.attempts() == []
    slurm.hold(None)
    place.ok("resume", run.run_id, "--json")
    assert run.job != first
    assert run.outcome().outcome == "completed"


def test_stop_saves_and_resume_goes_on(slurm: FakeSlurm, place: Place) -> None:
    run = place.launch()
    run.steps(3)
    assert "stopped (stop), saved at step" in place.ok("stop", run.run_id)
    state = run.status()
    assert (state["state"], state["reason"], state["checkpoint"]) == ("stopped", "stop", reached(run, 0))
    assert slurm.job(run.job)["restarts"] == 0
    place.workers_do(steps=state["step"] + 5)
    assert json.loads(place.ok("resume", run.run_id, "--json"))["from_step"] == state["step"]
    run.wait(lambda: (record := run.run.outcome()) and record.attempt == 1 and record.outcome == "completed")
    assert started(run, 1) == state["step"]


def test_a_job_log_is_shown_where_there_is_no_other(slurm: FakeSlurm, place: Place) -> None:
    """A command of the cluster file's setup fails: no attempt, and why names the command and its message."""
    place.write_cluster(
        setup=["module() { echo 'Lmod has detected an Error: no cuda'; return 1; }", "module load cuda", "true"]
    )
    run = place.launch()
    run.wait(lambda: run.status()["state"] == "failed")
    assert "before anything of the run had begun" in run.why()
    assert (
        "ended with status 1 at: module load cuda, with the message: Lmod has detected an Error: no cuda" in run.why()
    )
    assert "SLURM has ended it: FAILED" in run.status()["queue"]


# -- the site takes the nodes ----------------------------------------------------------------------------------------
NOTICES: dict[str, Callable[[FakeSlurm, Launched], object]] = {
    "launch drill": lambda slurm, run: run.place.ok("drill", "preempt", run.run_id),
    "no grace": lambda slurm, run: slurm.take_nodes(run.job),
}


@pytest.mark.parametrize("notice", NOTICES)
def test_a_preempted_run_goes_on_as_the_same_job(notice: str, slurm: FakeSlurm, place: Place) -> None:
    run = place.launch()
    run.steps(3)
    NOTICES[notice](slurm, run)
    run.steps(3, attempt=1)
    assert run.run.outcome(0).reason == "preempted"
    assert started(run, 1) == reached(run, 0), "no step is lost"
    assert slurm.job(run.job)["restarts"] == 1, "put back into the queue once, by the site or by us"
    assert run.run.listdir("submissions") == ["0000.job.json", "0000.json"]
    assert "1 earlier attempt ended by preemption" in run.why() or run.status()["attempt"] == 1
    place.ok("cancel", run.run_id)


def test_a_preempted_run_waits_and_says_why(slurm: FakeSlurm, place: Place) -> None:
    """Saved, it is in the queue again, where nothing runs that could save; stop takes it back."""
    run = place.launch()
    run.steps(3)
    slurm.hold("BeginTime")
    slurm.take_nodes(run.job)
    run.wait(lambda: run.status()["state"] == "pending")
    assert "before it starts again (BeginTime)" in run.why()
    place.ok("stop", run.run_id)
    state = run.status()
    assert (state["state"], state["reason"], state["checkpoint"]) == ("stopped", "cancelled", reached(run, 0))
    assert run.run.attempts() == [0]


def test_a_time_limit_is_a_preemption(slurm: FakeSlurm, place: Place) -> None:
    """SLURM is ending the job already, and not because a person wanted it: it is put back all the same."""
    slurm.limit(5.0)  # less than the notice, so that its time is over from the start
    run = place.launch()
    run.steps(3)
    slurm.time_is_over(run.job)
    run.steps(3, attempt=1)
    assert run.run.outcome(0).reason == "preempted"
    assert (slurm.job(run.job)["restarts"], started(run, 1)) == (1, reached(run, 0))
    place.ok("cancel", run.run_id)


NO_PREEMPTION: dict[str, Callable[[FakeSlurm], object]] = {
    "this site has no preemption between partitions": lambda slurm: slurm.configure(PreemptType="preempt/none"),
    "jobs of partition spot are not preempted": lambda slurm: slurm.partition("spot", PreemptMode="OFF"),
    "no partition stands above spot on node1": lambda slurm: slurm.partition("prod", PriorityTier="1"),
    "partition prod: Job violates accounting policy": lambda slurm: slurm.fail(
        "sbatch", stderr="Job violates accounting policy"
    ),
}


@pytest.mark.parametrize("why", NO_PREEMPTION)
def test_a_notice_where_the_site_preempts_nobody(why: str, slurm: FakeSlurm, place: Place) -> None:
    """All agents are warned, as before a time limit, and it is said why."""
    place.workers_do(deaf=True)
    run = place.launch()
    run.steps(1)
    NO_PREEMPTION[why](slurm)
    assert backend.notify(run.run, run.run.job(0)) == f"USR1, as before a time limit ({why})"
    assert slurm.asked("scancel") == [["--signal=USR1", run.job]]
    slurm.work_again()
    place.ok("cancel", run.run_id)


def test_a_word_beside_the_run(slurm: FakeSlurm, place: Place) -> None:
    """As a drill's blow: a step on the last node of the job."""
    slurm.hold("Resources")
    run = place.launch("--nodes", "2")
    job = newest_job(run.run)
    assert job is not None
    with pytest.raises(LaunchError, match=f"job {run.job} has no nodes now"):
        backend.run_on_node(run.run, job, ["-c", "print(7)"])
    slurm.start(run.job)
    run.steps(1)
    assert backend.run_on_node(run.run, run.run.job(0), ["-c", "print(7)"]) == "7\n"
    assert {"--overlap", f"--jobid={run.job}", "--nodelist=node2"} < set(slurm.asked("srun")[-1])
    with pytest.raises(LaunchError, match=r"no step could run on node2: (.|\n)*ZeroDivisionError"):
        backend.run_on_node(run.run, run.run.job(0), ["-c", "1 / 0"])
    place.ok("cancel", run.run_id)


def test_a_complete_run_that_is_started_again_stays_complete(slurm: FakeSlurm, place: Place) -> None:
    place.workers_do(steps=3)
    run = place.launch()
    assert run.outcome().outcome == "completed"
    run.wait(lambda: slurm.job(run.job)["state"] == "COMPLETED")
    slurm.start(run.job)
    run.wait(lambda: "started again, but the run is complete" in run.looks())
    run.wait(lambda: slurm.job(run.job)["state"] == "COMPLETED")
    assert run.run.attempts() == [0]


# -- people end it ---------------------------------------------------------------------------------------------------
def test_scancel_is_a_stop_and_no_preemption(slurm: FakeSlurm, place: Place) -> None:
    run = place.launch()
    run.steps(3)
    subprocess.run(["scancel", run.job], check=True)
    record = run.outcome()
    assert (record.outcome, record.reason) == ("stopped", SCANCEL)
    run.wait(lambda: slurm.job(run.job)["state"] == "CANCELLED")
    assert run.run.attempts() == [0]
    assert run.status()["resumable"]
    run.nothing_left()


def test_cancel_ends_it_now(slurm: FakeSlurm, place: Place) -> None:
    place.workers_do(deaf=True)
    run = place.launch()
    run.steps(3)
    place.ok("cancel", run.run_id)
    state = run.status()
    assert (state["state"], state["reason"], state["alive"]) == ("stopped", "cancelled", False)
    assert slurm.job(run.job)["state"] in OVER  # its owner may have been faster than scancel
    run.nothing_left()


# -- something fails -------------------------------------------------------------------------------------------------
def test_a_failure_is_tried_again_inside_the_allocation(slurm: FakeSlurm, place: Place) -> None:
    place.workers_do(steps=8, save_every=2, faults={"0": {"kill_at": 5}})
    run = place.launch()
    record = run.outcome()
    assert (record.outcome, record.attempt) == ("completed", 1)
    assert run.run.outcome(0).outcome == "failed"
    assert slurm.job(run.job)["restarts"] == 0


@pytest.mark.slow
def test_an_error_that_comes_back_ends_the_run(slurm: FakeSlurm, place: Place) -> None:
    place.workers_do(faults={"0": {"error_at": 2}, "1": {"error_at": 2}})
    run = place.launch()
    record = run.outcome()
    assert (record.outcome, record.attempt) == ("failed", 1)
    run.wait(lambda: slurm.job(run.job)["state"] == "FAILED")
    assert slurm.job(run.job)["restarts"] == 0, "SLURM does not start it again"


REFUSED = {
    "partition": ({"partition": "nowhere"}, (), "slurm.partition of the cluster file"),
    "nodes": ({}, ("--nodes", "9", "train.global_batch_size=72"), "Requested node configuration is not available"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_slurm_refuses_leaves_nothing(what: str, slurm: FakeSlurm, place: Place) -> None:
    options, words, said = REFUSED[what]
    place.write_cluster(slurm={"partition": "spot", **options})
    before = place.files()
    told = place.ok("tiny.yaml", "--cluster", "site", "--run-url", str(place.runs / "run"), *words, code=2)
    assert "SLURM refuses the job" in told and said in told
    assert place.files() == before
    assert "no runs yet" in place.ok("status")
    assert slurm.jobs() == []


def test_where_there_is_no_sbatch_nothing_begins(
    slurm: FakeSlurm, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = place.files()
    monkeypatch.setenv("PATH", "/nonexistent")
    told = place.ok("tiny.yaml", "--cluster", "site", "--run-url", str(place.runs / "run"), code=2)
    assert "sbatch is not found here" in told and "--dry-run" in told
    assert place.files() == before


# -- the controller is away ------------------------------------------------------------------------------------------
def test_a_run_does_not_need_the_controller(slurm: FakeSlurm, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told by its heartbeat, and when the controller is back by that."""
    monkeypatch.setattr(client, "AWAY_SECONDS", 0.0)
    run = place.launch()
    run.steps(3)
    slurm.controller_away()
    state = run.status()
    assert (state["state"], state["alive"]) == ("running", True)
    assert state["queue"] == "SLURM's controller does not answer"
    assert "does not answer" in run.why()
    code, said = place.typed("cancel", run.run_id)
    assert code == 1 and "could not end job" in said and "try again when its controller is back" in said
    assert run.outcome().reason == "cancelled", "it was asked through the run directory too"
    slurm.work_again()
    run.wait(lambda: slurm.job(run.job)["state"] != "RUNNING")
    assert (run.status()["state"], run.status()["queue"]) == ("stopped", None)


def preempted_without_controller(slurm: FakeSlurm, place: Place) -> Launched:
    """A run that has saved and cannot give its job back yet."""
    run = place.launch()
    run.steps(3)
    slurm.controller_away()
    run.run.give_notice(0, "preempted")
    run.wait(lambda: "the job is given back when it does" in backend.job_log(run.run))
    return run


@pytest.mark.slow
def test_a_run_is_given_back_when_the_controller_answers(slurm: FakeSlurm, place: Place) -> None:
    """Its owner waits: a run that has saved does not end because nobody took it back."""
    run = preempted_without_controller(slurm, place)
    assert run.run.outcome(0).reason == "preempted"
    assert run.run.outcome() is None
    slurm.work_again()
    run.steps(3, attempt=1)
    assert started(run, 1) == reached(run, 0), "no step is lost"
    assert slurm.job(run.job)["restarts"] == 1
    assert run.run.listdir("submissions") == ["0000.job.json", "0000.json"], "and no other job"
    place.ok("cancel", run.run_id)


def test_a_run_that_waits_for_the_controller_can_be_stopped(slurm: FakeSlurm, place: Place) -> None:
    run = preempted_without_controller(slurm, place)
    run.run.request_stop("stop")
    record = run.outcome()
    assert (record.outcome, record.reason) == ("stopped", "stop")
    slurm.work_again()


def test_a_controller_that_is_away_is_not_asked_for_every_run(slurm: FakeSlurm, place: Place) -> None:
    """Each question costs seconds."""
    slurm.hold("Priority")
    runs = [place.launch(name=f"run-{number}") for number in range(3)]
    slurm.controller_away()
    asked = len(slurm.asked("squeue"))
    assert len(json.loads(place.ok("status", "--json"))) == len(runs)
    assert len(slurm.asked("squeue")) == asked + 1


def test_a_run_that_waits_is_not_lost_with_the_controller(
    slurm: FakeSlurm, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "AWAY_SECONDS", 0.0)
    slurm.hold("Priority")
    run = place.launch()
    slurm.controller_away()
    state = run.status()
    assert (state["state"], state["alive"], state["resumable"]) == ("unknown", False, False)
    assert f"SLURM's controller does not answer. Whether job {run.job} waits" in run.why()
    assert "may wait or run: SLURM's controller does not answer" in place.ok("stop", run.run_id, code=1)
    assert "queued already" in place.ok("resume", run.run_id, code=2)
    slurm.work_again()
    assert run.status()["state"] == "pending"


def test_a_job_that_slurm_has_forgotten_is_gone(slurm: FakeSlurm, place: Place) -> None:
    """MinJobAge after its end squeue says `Invalid job id`: no sign of a controller that is away."""
    slurm.hold("Priority")
    other, run = place.launch(name="other"), place.launch()
    slurm.forget(run.job)
    state = run.status()
    assert (state["state"], state["alive"], state["queue"]) == ("lost", False, None)
    assert other.status()["state"] == "pending", "and others are asked about as before"


def test_a_launch_without_a_controller_leaves_nothing_queued(slurm: FakeSlurm, place: Place) -> None:
    slurm.controller_away()
    told = place.ok("tiny.yaml", "--cluster", "site", "--run-url", str(place.runs / "run"), code=2)
    assert "is the controller up? (sinfo)" in told
    assert not Path(place.runs / "run").exists()


def test_questions_are_bounded_in_time(slurm: FakeSlurm, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(client.Controller.run.__kwdefaults__, "seconds", 0.3)
    slurm.hold("Priority")
    run = place.launch()
    slurm.fail("squeue", seconds=30)
    began = time.monotonic()
    assert run.status()["queue"] == "SLURM's controller does not answer"
    assert time.monotonic() - began < 5
