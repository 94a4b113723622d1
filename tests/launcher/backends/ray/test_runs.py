"""Runs on Ray from their submission to their end, without one: dashboard, actors, agent and worker are stand-ins."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from launchyard.errors import LaunchError
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.backends.ray import backend
from launchyard.run import layout
from launchyard.run.records import RAY_STOP, OutcomeRecord
from tests.support.fake_ray import FakeRay
from tests.support.typed import Launched, Place


def actor(run: Launched, rank: int = 0, attempt: int = 0) -> int:
    """The process of an actor."""
    return int(run.run.read_json(f"attempts/{attempt:04d}/nodes.json")[rank]["pid"])


def actor_node(run: Launched, attempt: int = 0) -> str:
    return str(run.run.read_json(f"attempts/{attempt:04d}/nodes.json")[0]["node_id"])


def gone(cluster: FakeRay, run: Launched) -> str:
    """Ray's word, once the job is over."""

    def ended() -> Any:
        status = cluster.jobs[run.job].status
        cluster.answer("GET", f"/api/jobs/{run.job}", b"")
        return status if status not in ("PENDING", "RUNNING") else ""

    return str(run.wait(ended))


def age_heartbeat(run: Launched, attempt: int = 0, seconds: float = 3600.0) -> None:
    """As if its owner had not beaten for so long."""
    then = time.time() - seconds
    for name in ("heartbeat.json", "job.json"):
        os.utime(run.run.path(run.run.attempt_dir(attempt), name), (then, then))


# -- a life ----------------------------------------------------------------------------------------------------------
def test_a_run_waits_then_runs_and_completes(cluster: FakeRay, place: Place) -> None:
    place.workers_do(steps=12)
    cluster.hold = True
    run = place.launch()
    state = run.status()
    assert (state["state"], state["alive"], state["job_id"]) == ("pending", True, run.job)
    assert state["queue"].startswith("Job has not started yet")
    assert f"waits in the queue as job {run.job}: Job has not started yet" in run.why()
    assert "queued already: job" in place.ok("resume", run.run_id, code=2)
    cluster.start(run.job)
    record = run.outcome()
    assert (record.outcome, record.step) == ("completed", 12)
    assert gone(cluster, run) == "SUCCEEDED"
    assert run.status()["state"] == "completed"
    assert run.run.read_json("attempts/0000/nodes.json")[0]["host"]
    run.nothing_left()


def test_what_ray_is_sent(cluster: FakeRay, place: Place) -> None:
    """Code that is there already is not sent again."""
    cluster.hold = True
    runs = [place.launch(name=f"run-{number}") for number in range(2)]
    (package,) = cluster.packages
    for run in runs:
        request = cluster.jobs[run.job].request
        assert request["submission_id"] == run.job and run.job.startswith(run.run_id)
        assert request["runtime_env"]["working_dir"] == f"gcs://{package}"
        assert request["metadata"] == {"launchyard_run": run.run_id}
        assert f"--job-id={run.job}" in request["entrypoint"]
    assert sum(asked.startswith("PUT") for asked in cluster.heard) == 1


def test_no_room_is_said_and_taken_back(cluster: FakeRay, place: Place) -> None:
    """Ray runs the job, which waits for its nodes: a queue all the same."""
    cluster.nodes(2, cpus=1.0)
    run = place.launch()
    run.wait(lambda: "2 CPU each" in (run.status()["queue"] or ""))
    state = run.status()
    assert (state["state"], state["alive"]) == ("pending", True)
    assert "of 2 nodes here 0 have that much (at most 1 CPU): add nodes, or ask for less" in state["queue"]
    assert "stopped" in place.ok("stop", run.run_id)
    assert run.run.attempts() == [] and run.status()["state"] == "stopped"
    assert gone(cluster, run) == "SUCCEEDED"


def test_nodes_that_become_free_are_taken(cluster: FakeRay, place: Place) -> None:
    place.workers_do(steps=5)
    cluster.nodes(2, free=0.0)
    run = place.launch()
    run.wait(lambda: "of 2 such nodes 0 are free" in (run.status()["queue"] or ""))
    cluster.nodes(2)
    assert run.outcome().outcome == "completed"


def test_fewer_nodes_will_do_where_the_recipe_says_so(cluster: FakeRay, place: Place) -> None:
    place.workers_do(steps=5)
    cluster.nodes(1)
    run = place.launch("--nodes", "2", "resources.min_nodes=1")
    assert run.outcome().outcome == "completed"
    assert run.run.job(0).nnodes == 1
    assert "going on with 1 of 2 nodes" in cluster.log(run.job).read_text()


def test_two_nodes_have_an_agent_each(cluster: FakeRay, place: Place) -> None:
    place.workers_do(steps=5)
    run = place.launch("--nodes", "2")
    assert run.outcome().outcome == "completed"
    assert [node["rank"] for node in run.run.read_json("attempts/0000/nodes.json")] == [0, 1]


@pytest.mark.slow
def test_stop_saves_and_resume_goes_on(cluster: FakeRay, place: Place) -> None:
    run = place.launch()
    run.steps(3)
    place.ok("stop", run.run_id)
    state = run.status()
    assert (state["state"], state["reason"], state["checkpoint"]) == ("stopped", "stop", state["step"])
    place.workers_do(steps=state["step"] + 3)
    first = run.job
    place.ok("resume", run.run_id, "--json")
    run.wait(lambda: (record := run.run.outcome()) and record.attempt == 1 and record.outcome == "completed")
    assert run.job != first


# -- people end it ---------------------------------------------------------------------------------------------------
def test_cancel_ends_it_now(cluster: FakeRay, place: Place) -> None:
    place.workers_do(deaf=True)
    run = place.launch()
    run.steps(3)
    place.ok("cancel", run.run_id)
    state = run.status()
    assert (state["state"], state["reason"], state["alive"]) == ("stopped", "cancelled", False)
    run.nothing_left()


def test_an_owner_that_does_not_answer_is_ended_by_ray(
    cluster: FakeRay, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "OBEY_SECONDS", 0.3)
    cluster.hold = True
    run = place.launch()
    place.ok("cancel", run.run_id)
    assert cluster.jobs[run.job].status == "STOPPED"
    assert run.status()["state"] == "stopped"


def test_ray_job_stop_saves_first(cluster: FakeRay, place: Place) -> None:
    run = place.launch()
    run.steps(3)
    cluster.answer("POST", f"/api/jobs/{run.job}/stop", b"")
    record = run.outcome()
    assert (record.outcome, record.reason) == ("stopped", "terminated")
    assert record.checkpoint is not None
    assert gone(cluster, run) == "STOPPED"


def test_a_job_that_ray_stopped_before_it_began(cluster: FakeRay, place: Place) -> None:
    cluster.hold = True
    run = place.launch()
    cluster.answer("POST", f"/api/jobs/{run.job}/stop", b"")
    state = run.status()
    assert (state["state"], state["reason"], state["resumable"]) == ("stopped", RAY_STOP, True)


# -- nodes are taken -------------------------------------------------------------------------------------------------
def test_a_notice_saves_and_goes_on(cluster: FakeRay, place: Place) -> None:
    run = place.launch()
    run.steps(3)
    backend.notify(run.run, run.run.job(0))
    run.steps(3, attempt=1)
    assert run.run.outcome(0).reason == "preempted"
    assert len(cluster.jobs) == 1, "the same job asks for nodes again"
    place.ok("cancel", run.run_id)


def test_a_drained_node_is_left_in_time(cluster: FakeRay, place: Place) -> None:
    run = place.launch()
    run.steps(3)
    cluster.drain(0, seconds=60)
    run.steps(3, attempt=1)
    assert run.run.outcome(0).reason == "preempted"
    assert actor_node(run, attempt=1) != actor_node(run)
    assert "is about to be taken, in" in cluster.log(run.job).read_text()
    place.ok("cancel", run.run_id)


def test_a_lost_node_is_named_and_replaced(cluster: FakeRay, place: Place) -> None:
    place.workers_do(save_every=2)
    run = place.launch()
    run.steps(5)
    cluster.nodes(2, dead=(0,))
    os.kill(actor(run), signal.SIGKILL)
    run.steps(3, attempt=1)
    record = run.run.outcome(0)
    assert record is not None and "went away, with node 0 of the run" in record.message
    place.ok("cancel", run.run_id)


def test_a_bad_node_is_named_left_out_and_remembered(cluster: FakeRay, place: Place) -> None:
    """It costs none of the run's own failures, and a resume leaves it out as well."""
    cluster.nodes(3)
    cluster.break_nodes(1)
    place.workers_do(steps=5)
    run = place.launch("--nodes", "2", "resources.max_failures=0")
    assert run.outcome().outcome == "completed"
    record = run.run.outcome(0)
    assert record is not None and record.reason == "bad node"
    assert record.message == "host1 (127.0.0.2) cannot start node 1 of the run: Failed to set up runtime environment."
    hosts = [node["address"] for node in run.run.read_json("attempts/0001/nodes.json")]
    assert hosts == ["127.0.0.1", "127.0.0.3"]
    place.workers_do(steps=8)
    place.ok("resume", run.run_id, "train.max_steps=8")
    run.wait(lambda: (end := run.run.outcome(2)) and end.outcome == "completed")


def test_bad_nodes_are_tried_again_where_others_are_too_few(cluster: FakeRay, place: Place) -> None:
    cluster.nodes(2)
    cluster.break_nodes(1)
    run = place.launch("--nodes", "2", "resources.max_failures=1")
    assert run.outcome().reason == "agent lost"
    assert [run.run.outcome(number).reason for number in (0, 1)] == ["bad node", "agent lost"]  # type: ignore[union-attr]
    assert "trying them again: host1 could not start" in cluster.log(run.job).read_text()


@pytest.mark.slow
def test_a_node_on_which_nothing_gets_to_a_step_is_tried_last(cluster: FakeRay, place: Place) -> None:
    """As where Ray's memory monitor kills whatever begins there."""
    cluster.nodes(2)
    place.workers_do(step_seconds=3)
    run = place.launch()
    run.wait(lambda: run.run.exists("attempts/0000/nodes.json"))
    os.kill(actor(run), signal.SIGKILL)
    run.wait(lambda: run.run.exists("attempts/0001/nodes.json"))
    assert actor_node(run, 0) != actor_node(run, 1)
    assert "leaving out host0" in cluster.log(run.job).read_text()
    place.ok("cancel", run.run_id)


def test_an_actor_that_dies_alone_is_a_failure(cluster: FakeRay, place: Place) -> None:
    run = place.launch()
    run.steps(3)
    os.kill(actor(run), signal.SIGKILL)
    run.steps(3, attempt=1)
    record = run.run.outcome(0)
    assert record is not None and record.reason == "agent lost"
    assert "The actor died unexpectedly" in record.message
    place.ok("cancel", run.run_id)


@pytest.mark.slow
def test_an_error_that_comes_back_ends_the_run(cluster: FakeRay, place: Place) -> None:
    place.workers_do(faults={"0": {"error_at": 2}, "1": {"error_at": 2}})
    run = place.launch()
    record = run.outcome()
    assert (record.outcome, record.attempt) == ("failed", 1)
    assert gone(cluster, run) == "FAILED"
    assert "it broke" in run.why()


def test_a_word_beside_the_run(cluster: FakeRay, place: Place) -> None:
    """As a drill's blow: a short job on the last node of the run."""
    cluster.nodes(2, free=0.0)
    run = place.launch()
    job = newest_job(run.run)
    assert job is not None
    with pytest.raises(LaunchError, match="has no nodes now"):
        backend.run_on_node(run.run, job, ["-c", "print(7)"])
    cluster.nodes(2)
    run.steps(1)
    assert backend.run_on_node(run.run, run.run.job(0), ["-c", "print(7)"]) == "7\n"
    with pytest.raises(LaunchError, match=r"no process could run on .*: ZeroDivisionError"):
        backend.run_on_node(run.run, run.run.job(0), ["-c", "1 / 0"])
    place.ok("cancel", run.run_id)


# -- refused, lost, away ---------------------------------------------------------------------------------------------
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in submit\nValueError: no such runtime_env\n'
REFUSED = {
    "400": ("POST /api/jobs/", 400, TRACEBACK, "ValueError: no such runtime_env"),
    "503": ("GET /api/version", 503, "no healthy upstream", "no healthy upstream"),
    "401": ("GET /api/version", 401, "Unauthorized: Missing authentication token", "ray.token_file of the cluster"),
    "no agent": (
        "POST /api/jobs/", 500, "No available agent to submit job, please try again later.", "No available agent",
    ),
    "another program": ("GET /api/version", 200, "<html>hello</html>", "is not a Ray dashboard"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_ray_refuses_leaves_nothing(what: str, cluster: FakeRay, place: Place) -> None:
    asked, status, text, said = REFUSED[what]
    cluster.replies[asked] = status, text
    before = place.files()
    assert said in place.ok("tiny.yaml", "--cluster", "site", "--run-url", str(place.runs / "run"), code=2)
    assert place.files() == before
    assert "no runs yet" in place.ok("status")


def test_a_dashboard_that_is_not_there_leaves_nothing(cluster: FakeRay, place: Place) -> None:
    cluster.away()
    before = place.files()
    told = place.ok("tiny.yaml", "--cluster", "site", "--run-url", str(place.runs / "run"), code=2)
    assert f"no Ray dashboard answers at {cluster.address}" in told
    assert place.files() == before


def test_a_job_that_cannot_begin_says_so(cluster: FakeRay, place: Place) -> None:
    place.write_cluster(ray={"address": cluster.address, "python": "/no/such/python"})
    run = place.launch()
    run.wait(lambda: run.status()["state"] == "failed")
    assert "before anything of the run had begun" in run.why()
    assert "/no/such/python: " in run.why()
    assert "Ray has ended it: FAILED" in run.status()["queue"]


def test_an_environment_that_cannot_be_made_is_the_reason(cluster: FakeRay, place: Place) -> None:
    cluster.hold = True
    run = place.launch()
    job = cluster.jobs[run.job]
    job.status = "FAILED"
    job.message = "runtime_env setup failed: Failed to set up runtime environment.\nconda env no-such-env not found"
    reason = "runtime_env setup failed: Failed to set up runtime environment. conda env no-such-env not found"
    assert run.status()["state"] == "failed"
    assert reason in run.status()["queue"]
    assert reason in run.why()


ANSWERS = {
    "503": (503, "no healthy upstream"),
    "500": (500, TRACEBACK),
    "401": (401, "Unauthorized: Missing authentication token"),
    "another program": (200, "<html>hello</html>"),
    "another program's JSON": (200, "[]"),
    "302": (302, ""),
    "404 of an ingress": (404, "default backend - 404"),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_a_run_is_shown_whatever_answers_for_its_dashboard(what: str, cluster: FakeRay, place: Place) -> None:
    """A proxy before a head that is down, say: one of many runs, and no reason to show none of them."""
    cluster.hold = True
    run = place.launch()
    cluster.replies[f"GET /api/jobs/{run.job}"] = ANSWERS[what]
    (state,) = json.loads(place.ok("status", "--json"))
    assert state["run_id"] == run.run_id
    assert cluster.address in state["queue"] or "Ray refuses" in state["queue"]


def test_a_run_whose_dashboard_cannot_be_known_is_shown(cluster: FakeRay, place: Place) -> None:
    """The record of its submission was damaged, say."""
    cluster.hold = True
    run = place.launch()
    record = Path(run.run.path("submissions/0000.json"))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"place": {}}))
    (state,) = json.loads(place.ok("status", "--json"))
    assert "no submission to Ray is known" in state["queue"]


@pytest.mark.parametrize("told", [False, True], ids=["without a word", "its peer told"])
def test_a_job_that_ray_calls_running_is_lost_with_its_heartbeat(
    told: bool, cluster: FakeRay, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head was killed and came back with the table of jobs that it had (fault tolerance of the GCS).

    An agent on another node may have seen that it lost its peer: that is no end, but the owner cannot say so any more.
    """
    monkeypatch.setattr("launchyard.launcher.agent.ownership.TAKEOVER_SECONDS", 0.1)
    run = place.launch()
    run.steps(3)
    ghost, owner = cluster.jobs[run.job], cluster.jobs[run.job].process
    assert owner is not None
    owner.kill()
    owner.wait()
    ghost.process = None
    assert run.status()["alive"], "its lease has not expired"
    age_heartbeat(run)
    if told:
        said = OutcomeRecord(outcome="failed", reason="peer lost", message="a peer", attempt=0, time=time.time())
        run.run.write_outcome(said)
    state = run.status()
    assert (state["state"], state["alive"], state["resumable"]) == ("lost", False, True)
    assert "Ray says RUNNING, but its owner has not been heard of for 1h" in state["queue"]
    assert state["queue"] in run.why()
    cluster.hold = True
    first = run.job
    place.ok("resume", run.run_id, "--json")
    assert run.job != first and run.status()["state"] == "pending"


def test_a_run_does_not_need_the_dashboard(cluster: FakeRay, place: Place) -> None:
    """And a cancel is not said to be done before it is."""
    run = place.launch()
    run.steps(3)
    cluster.away()
    state = run.status()
    assert (state["state"], state["alive"]) == ("running", True)
    assert "no Ray dashboard answers" in state["queue"]
    told = place.ok("cancel", run.run_id, code=1)
    assert "was asked to end, and its state is unknown" in told
    assert run.outcome().reason == "cancelled", "it was asked through the run directory"
    run.nothing_left()


def test_a_ray_that_was_started_anew_knows_no_job(cluster: FakeRay, place: Place) -> None:
    cluster.hold = True
    run = place.launch()
    cluster.jobs.clear()
    assert (run.status()["state"], run.status()["alive"]) == ("lost", False)


def test_a_run_whose_head_was_away_goes_on_by_itself(cluster: FakeRay, place: Place) -> None:
    """The head died with the owner and forgot its jobs: `launch monitor --resume` sends the next one."""
    from launchyard.launcher.monitor.auto_resume import AutoResume
    from launchyard.launcher.monitor.discovery import Discovery
    from launchyard.launcher.monitor.server import Monitor
    from launchyard.launcher.submit.resume import make_ready

    lines = list[str]()
    watching = Monitor(
        Discovery(), on_view=[AutoResume(lambda run: make_ready(run, {}).submit(report=str).job_id, lines.append)]
    )
    run = place.launch()
    run.steps(3)
    watching.refresh()
    place.workers_do(steps=20)
    lost = cluster.jobs.pop(run.job)
    assert lost.process is not None
    os.killpg(lost.process.pid, signal.SIGKILL)
    lost.process.wait()
    watching.refresh()
    assert lines == [], "Ray knows no such job, but its owner was heard of a moment ago"
    os.utime(run.run.path(layout.heartbeat(0)), (0, 0))
    run.wait(lambda: watching.refresh() and lines)
    assert "resumed" in lines[0]
    run.wait(lambda: (record := run.run.outcome()) and record.outcome == "completed")
    assert run.run.outcome().attempt == 1  # type: ignore[union-attr]
