"""What SLURM's commands say, and what is made of it; every answer is one that SLURM 22.05 gives."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.backends.base import JobStatus
from launchyard.launcher.backends.slurm import client
from launchyard.launcher.backends.slurm.client import Controller
from tests.support.fake_slurm import FakeSlurm

SCRIPT = "#!/bin/bash\n#SBATCH --job-name=x\n#SBATCH --partition=spot\nexec sleep 30\n"


@pytest.fixture
def ours(slurm: FakeSlurm) -> Controller:
    return Controller({"SLURM_CONF": slurm.env["SLURM_CONF"]})


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "job.sh"
    path.write_text(SCRIPT)
    return str(path)


def wait(controller: Controller, job: str, state: str) -> None:
    end = time.monotonic() + 20
    while controller.ask(job).state != state:
        assert time.monotonic() < end, controller.ask(job)
        time.sleep(0.03)


def test_a_job_from_the_queue_to_its_end(slurm: FakeSlurm, ours: Controller, script: str) -> None:
    slurm.hold("QOSMaxJobsPerUserLimit")
    job = ours.submit(script)
    seen = ours.ask(job)
    assert (seen.state, seen.scheduler_state, seen.nodes, seen.end) == ("queued", "PENDING", "", None)
    assert seen.reason == "you run as many jobs as your quality of service allows (QOSMaxJobsPerUserLimit)"
    assert ours.end_time(job) is None, "N/A"
    slurm.start(job)
    wait(ours, job, "running")
    seen = ours.ask(job)
    assert (seen.reason, seen.nodes) == ("", "node1")
    assert seen.start is not None and seen.end is not None and seen.end == ours.end_time(job)
    assert ours.job_facts(job) == ("RUNNING", 0, False)
    ours.cancel(job)
    assert ours.wait_gone(job, seconds=20)
    assert (ours.ask(job).scheduler_state, ours.job_facts(job).state) == ("CANCELLED", "CANCELLED")
    ours.cancel(job)  # what has ended is no error


def test_a_job_that_does_not_end_is_waited_for_so_long(slurm: FakeSlurm, ours: Controller, script: str) -> None:
    slurm.hold("Priority")
    job = ours.submit(script)
    assert not ours.wait_gone(job, seconds=0.0)


def test_the_site_in_its_own_words(slurm: FakeSlurm, ours: Controller) -> None:
    config = ours.config()
    assert (config["SLURM_VERSION"], config["KillWait"], config["JobRequeue"]) == ("22.05.8", "30 sec", "1")
    spot = next(one for one in ours.partitions() if one["PartitionName"] == "spot")
    assert (spot["GraceTime"], spot["PreemptMode"], spot["State"], spot["Nodes"]) == ("4", "REQUEUE", "UP", "node[1-4]")
    assert [one["PartitionName"] for one in ours.partitions("prod")] == ["prod"]
    assert ours.partitions("nowhere") == []
    assert ours.hostnames("node[2-4]") == ["node2", "node3", "node4"]
    assert ours.hostnames("") == []


def test_nothing_is_known_of_a_job_that_never_was(slurm: FakeSlurm, ours: Controller) -> None:
    assert ours.ask("7").state == "forgotten"
    assert ours.job_facts("7") == ("", 0, False)
    assert ours.end_time("7") is None
    assert not ours.requeue("7")
    ours.cancel("7")
    ours.cancel("7", signal="USR1")


def test_a_controller_that_comes_back_is_asked_again(
    slurm: FakeSlurm, ours: Controller, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.hold("Priority")
    job = ours.submit(script)
    slurm.controller_away()
    assert ours.ask(job).state == "unknown"
    slurm.work_again()
    assert ours.ask(job).state == "unknown", "within so many seconds nobody asks"
    monkeypatch.setattr(client, "AWAY_SECONDS", 0.0)
    assert ours.ask(job).state == "queued"


# What squeue says that is no state of the job -> the reason that people are shown.
NOT_ITS_OWN = {
    "squeue: error: Unable to establish configuration source": "squeue fails: squeue: error: Unable to establish",
    "": "squeue fails: code 1",
}


@pytest.mark.parametrize("said", NOT_ITS_OWN)
def test_an_answer_that_is_not_its_own_is_no_state(said: str, slurm: FakeSlurm, ours: Controller, script: str) -> None:
    slurm.hold("Priority")
    job = ours.submit(script)
    slurm.fail("squeue", stderr=said)
    seen = ours.ask(job)
    assert (seen.state, NOT_ITS_OWN[said] in seen.reason) == ("unknown", True), seen


def test_a_wrapper_of_squeue_may_print_more_or_nothing_of_use(
    slurm: FakeSlurm, ours: Controller, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.hold("Priority")
    job = ours.submit(script)
    program = slurm.programs / "squeue"
    real = program.read_text()
    program.write_text(real.replace("exec", "echo 'Welcome! 4 nodes are down'\nexec", 1))
    assert ours.ask(job).state == "queued"
    for printed, reason in {"Welcome!": "no state of the job", "LIMBO|None||N/A|N/A": "not known here: LIMBO"}.items():
        program.write_text(f"#!/bin/sh\necho '{printed}'\n")
        seen = ours.ask(job)
        assert seen.state == "unknown" and reason in seen.reason
    monkeypatch.setenv("PATH", "/nonexistent")
    assert ours.ask(job) == JobStatus("unknown", reason="squeue is not found here")


def test_what_a_controller_that_is_away_did_not_do(slurm: FakeSlurm, ours: Controller) -> None:
    slurm.controller_away()
    with pytest.raises(LaunchError, match=r"could not end job 7: .*Unable to contact slurm controller"):
        ours.cancel("7")
    assert (ours.config(), ours.partitions(), ours.requeue("7"), ours.job_facts("7")) == ({}, [], None, ("", 0, False))


def test_a_submission_without_an_answer(
    slurm: FakeSlurm, ours: Controller, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.fail("sbatch --parsable", seconds=30)
    monkeypatch.setattr(client, "SUBMIT_SECONDS", 0.5)
    monkeypatch.setattr(client, "FIND_SECONDS", 0.0)
    with pytest.raises(LaunchError, match="sbatch did not answer within 0 s, and no such job is in the queue"):
        ours.submit(script)
    slurm.fail("squeue", stderr="slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    with pytest.raises(LaunchError, match="the queue cannot be read either") as caught:
        ours.submit(script)
    assert "squeue --name=x" in str(caught.value.hint)


# What sbatch does after it has queued the job -> the arguments of FakeSlurm.fail.
ANSWERS_LOST: dict[str, dict[str, Any]] = {
    "none in time": {"seconds": 30},
    "a timeout": {"stderr": "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"},
    "no id": {"code": 0},
}


@pytest.mark.parametrize("answer", ANSWERS_LOST)
def test_a_job_whose_id_sbatch_did_not_give_is_found(
    answer: str, slurm: FakeSlurm, ours: Controller, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.hold("Priority")
    older = ours.submit(script)
    monkeypatch.setattr(client, "SUBMIT_SECONDS", 2.0)
    slurm.fail("sbatch --parsable", does=True, **ANSWERS_LOST[answer])
    job = ours.submit(script, known=[older])
    assert slurm.jobs() == [older, job], "one job, and it is known"


def test_a_banner_is_no_job(slurm: FakeSlurm, ours: Controller, script: str) -> None:
    slurm.hold("Priority")
    program = slurm.programs / "sbatch"
    program.write_text(program.read_text().replace("exec", "echo 'Welcome! 4 nodes are down'\necho 2026\nexec", 1))
    assert ours.submit(script) == slurm.jobs()[0]


REFUSALS = {
    "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)": "QOS policy",
    "Invalid account or account/partition combination specified": "slurm.account of the cluster file",
    "Invalid qos specification": "slurm.qos of the cluster file",
    "Requested time limit is invalid (missing or exceeds some limit)": "resources.time_limit",
    "Invalid feature specification": "slurm.constraint of the cluster file",
}


@pytest.mark.parametrize("said", REFUSALS)
def test_refusals_say_where_to_look(said: str, slurm: FakeSlurm, ours: Controller, script: str) -> None:
    slurm.fail("sbatch", stderr=f"sbatch: error: Batch job submission failed: {said}")
    with pytest.raises(UserError) as caught:
        ours.submit(script)
    assert str(caught.value).startswith(f"SLURM refuses the job: Batch job submission failed: {said}")
    assert REFUSALS[said] in str(caught.value)
