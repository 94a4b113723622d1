"""That this SLURM does what sites' SLURM does to a job: who gets which signal, what is requeued, what is noticed."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launchyard.launcher.sandbox.slurm.conf import Settings
from launchyard.launcher.sandbox.slurm.host import FREEZER
from tests.slurm.cluster import QUICK, SlurmCluster, running_cluster

pytestmark = pytest.mark.slurm
PROBE = Path(__file__).with_name("probe.py")
# The batch shell writes down signals as its step does, and waits for it as often as it takes.
SCRIPT = """#!/bin/bash
for word in TERM CONT USR1 USR2; do trap "echo batch $word >> {file}" $word; done
echo "batch restart=${{SLURM_RESTART_COUNT-none}} node=$SLURMD_NODENAME" >> {file}
srun {python} -S {probe} {file} &
while kill -0 $! 2>/dev/null; do wait $!; done
"""


class Heard:
    """What the processes of a job have written down."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, role: str) -> list[str]:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [line.split(" ", 1)[1] for line in lines if line.startswith(f"{role} ")]

    def signals(self, role: str) -> list[str]:
        return [word for word in self(role) if word.isupper() or word.startswith("USR")]


def start_probe(cluster: SlurmCluster, file: Path, *options: str) -> tuple[int, Heard]:
    """A job whose batch shell, task and task's child all listen."""
    script = SCRIPT.format(file=shlex.quote(str(file)), python=sys.executable, probe=shlex.quote(str(PROBE)))
    job, heard = cluster.sbatch(script, *options), Heard(file)
    cluster.wait(lambda: heard("grandchild") == ["ready"] and heard("task") == ["ready"], "a probe that is ready", 30)
    return job, heard


def preempt(cluster: SlurmCluster) -> int:
    return cluster.sbatch("exec sleep 1", "--partition=prod", "--nodes=4", "--exclusive")


@pytest.fixture(scope="module", params=["linuxproc", "cgroup"])
def site(request: pytest.FixtureRequest, slurm_cluster: SlurmCluster) -> Callable[..., SlurmCluster]:
    """A cluster of each kind of process tracking; the session's own where that is it."""
    if request.param == "linuxproc":
        yield slurm_cluster
        return
    if not FREEZER.is_dir():
        pytest.skip("needs the freezer of version 1 of control groups")
    with running_cluster(QUICK.model_copy(update={"proctrack": "cgroup", "nodes": 4})) as found:
        yield found


@pytest.fixture
def both(site: SlurmCluster) -> SlurmCluster:
    yield site
    site.settle()


# -- preemption ------------------------------------------------------------------------------------------------------
def test_notice_goes_to_the_step_alone_then_the_job_is_requeued(both: SlurmCluster, tmp_path: Path) -> None:
    """CONT and TERM at once, although USR2 was asked for; the batch shell hears of it when the grace is over."""
    job, heard = start_probe(both, tmp_path / "heard", "--partition=spot", "--requeue", "--signal=USR2@30")
    preempt(both)
    both.wait(lambda: "TERM" in heard("task"), "a notice", 20)
    assert sorted(heard.signals("task")) == ["CONT", "TERM"]
    assert heard.signals("batch") == []
    below = ["CONT", "TERM"] if both.site.settings.proctrack == "linuxproc" else []
    assert sorted(heard.signals("grandchild")) == below
    both.wait(lambda: "TERM" in heard("batch"), "the end of the grace", 30)
    both.wait_job(job, "PENDING", seconds=30)
    both.wait(lambda: len(heard("batch")) > 3 and heard("batch")[-1].startswith("restart=1"), "a second start", 60)
    assert heard("batch")[0].startswith("restart=none")
    assert both.job(job)["Restarts"] == "1"


def test_leaving_during_the_grace_is_an_end_and_no_requeue(cluster: SlurmCluster) -> None:
    script = "srun bash -c 'trap \"exit 0\" TERM; sleep 60 & wait' & wait $!"
    job = cluster.sbatch(script, "--partition=spot", "--requeue")
    cluster.wait(lambda: len(cluster.processes()) >= 4, "the step", 20)
    preempt(cluster)
    assert cluster.wait_job(job) == "COMPLETED"
    assert cluster.job(job)["Restarts"] == "0"
    # It is ours to put it back, with the same id.
    cluster.scontrol("requeue", str(job))
    assert cluster.wait_job(job, "PENDING", "RUNNING")
    assert cluster.job(job)["Restarts"] == "1"


@pytest.mark.parametrize(
    ("settings", "notice", "batch"),
    [({"user_signal": True}, ["CONT", "USR2"], []), ({"grace_seconds": 0}, ["CONT", "TERM"], ["CONT", "TERM"])],
    ids=["user signal", "no grace"],
)
def test_sites_that_notify_otherwise(
    settings: dict[str, object], notice: list[str], batch: list[str], tmp_path: Path, slurm_cluster: SlurmCluster
) -> None:
    with running_cluster(Settings(**{**QUICK.model_dump(), **settings, "nodes": 2})) as other:
        job, heard = start_probe(other, tmp_path / "heard", "--partition=spot", "--requeue", "--signal=USR2@30")
        other.sbatch("exec sleep 1", "--partition=prod", "--nodes=2", "--exclusive")
        other.wait(lambda: len(heard.signals("task")) >= 2, "a notice", 20)
        other.wait(lambda: len(heard.signals("batch")) >= len(batch), "the batch shell's", 20)
        assert sorted(set(heard.signals("task"))) == notice
        assert sorted(set(heard.signals("batch"))) == batch
        other.wait_job(job, "PENDING", "RUNNING", seconds=30)


# -- other ends ------------------------------------------------------------------------------------------------------
def test_requeue_by_hand_and_cancel(both: SlurmCluster, tmp_path: Path) -> None:
    job, heard = start_probe(both, tmp_path / "heard", "--requeue")
    both.scontrol("requeue", str(job))
    both.wait(lambda: "TERM" in heard("batch") and "TERM" in heard("task"), "TERM for all", 20)
    both.wait(lambda: heard("batch")[-1].startswith("restart=1"), "a second start", 60)
    both.wait(lambda: heard("grandchild").count("ready") == 2, "a second step", 30)
    both.run("scancel", str(job))
    assert both.wait_job(job) == "CANCELLED"
    both.wait(lambda: not both.processes(), "no process left", 30)


def test_a_signal_sent_to_the_step_or_to_the_batch_shell(both: SlurmCluster, tmp_path: Path) -> None:
    """`--signal` of sbatch and scancel: the step's processes, or with `--batch` the shell."""
    job, heard = start_probe(both, tmp_path / "heard")
    both.run("scancel", "--signal=USR1", str(job))
    both.wait(lambda: "USR1" in heard("task"), "USR1", 10)
    both.run("scancel", "--signal=USR2", "--batch", str(job))
    both.wait(lambda: "USR2" in heard("batch"), "USR2", 10)
    assert heard.signals("task") == ["USR1"]
    assert heard.signals("batch") == ["USR2"]
    assert heard.signals("grandchild") == (["USR1"] if both.site.settings.proctrack == "linuxproc" else [])


# -- what a job finds ------------------------------------------------------------------------------------------------
def test_each_task_finds_its_gpus_and_its_node(cluster: SlurmCluster, tmp_path: Path) -> None:
    step = "srun --label bash -c 'echo $(hostname) $CUDA_VISIBLE_DEVICES $(getent hosts $(hostname) | cut -d\" \" -f1)'"
    out = tmp_path / "out"
    job = cluster.sbatch(step, "--nodes=4", "--ntasks-per-node=1", "--gres=gpu:2", f"--output={out}")
    assert cluster.wait_job(job) == "COMPLETED"
    assert sorted(out.read_text().splitlines()) == [f"{i}: node{i + 1} 0,1 127.0.0.{11 + i}" for i in range(4)]
    half = cluster.sbatch("srun bash -c 'echo gpus $CUDA_VISIBLE_DEVICES'", "--gres=gpu:1", f"--output={out}")
    assert cluster.wait_job(half) == "COMPLETED"
    assert out.read_text() == "gpus 0\n"


def test_what_can_never_run_is_refused(cluster: SlurmCluster) -> None:
    done = cluster.site.run("sbatch", "--test-only", "--nodes=5", "--wrap=true")
    assert (done.returncode, "Node count" in done.stderr or "not available" in done.stderr) == (1, True), done.stderr
    refused = cluster.site.run("sbatch", "--partition=nowhere", "--wrap=true")
    assert refused.returncode == 1
    assert "invalid partition" in refused.stderr


# -- faults ----------------------------------------------------------------------------------------------------------
def test_a_crashed_node_is_noticed_and_its_job_goes_elsewhere(cluster: SlurmCluster, tmp_path: Path) -> None:
    _, heard = start_probe(cluster, tmp_path / "heard", "--requeue")
    (node,) = re.findall(r"node=(\w+)", heard("batch")[0])
    assert cluster.crash_node(node) >= 6  # slurmd, slurmstepd for batch and step, shell, srun, task and its child
    assert cluster.processes(node) == []
    cluster.wait_node(node, "down", "down*", seconds=60)
    cluster.wait(lambda: heard("batch")[-1].startswith("restart=1"), "a second start", 60)
    assert not heard("batch")[-1].endswith(f"node={node}")
    cluster.restart_node(node)


def test_a_job_outlives_its_slurmd_and_the_controller(cluster: SlurmCluster, tmp_path: Path) -> None:
    job, heard = start_probe(cluster, tmp_path / "heard", "--nodelist=node3")
    cluster.kill_slurmd("node3")
    cluster.stop_controller()
    assert len(cluster.processes("node3")) >= 4
    assert cluster.site.node_states() == {}
    cluster.restart_node("node3", wait=False)
    cluster.start_controller()
    cluster.wait(lambda: cluster.squeue(job) == "RUNNING", "the job to be known", 30)
    assert heard.signals("task") == []
    assert len(cluster.processes("node3")) >= 4
