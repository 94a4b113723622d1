"""A preemption as the site itself makes one: a short job of a partition whose jobs may take the nodes of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launchyard.launcher.backends.slurm.client import Controller


DEADLINE = "now+5minutes"  # by which SLURM forgets the other job, should it never start
SCRIPT = "#!/bin/sh\nexec sleep 1\n"


def preempt(slurm: Controller, job_id: str) -> tuple[str, str]:
    """Submits a job that takes the run's last node: (its description, ""), or ("", reason) if that is impossible."""
    if slurm.config().get("PreemptType") != "preempt/partition_prio":
        return "", "this site has no preemption between partitions"
    ours = slurm.output_of(["squeue", "--noheader", f"--jobs={job_id}", "--format=%P|%N"]).strip().partition("|")
    nodes = slurm.hostnames(ours[2])
    if not nodes:
        return "", f"job {job_id} has no nodes now"
    partitions = slurm.partitions()
    own = next((one for one in partitions if one["PartitionName"] == ours[0]), {})
    if own.get("PreemptMode", "OFF") == "OFF":
        return "", f"jobs of partition {ours[0]} are not preempted"
    refused = f"no partition stands above {ours[0]} on {nodes[-1]}"
    for above in partitions:
        if _tier(above) <= _tier(own) or nodes[-1] not in slurm.hostnames(above.get("Nodes", "")):
            continue
        name = above["PartitionName"]
        done = slurm.run(_sbatch(name, nodes[-1]), stdin=SCRIPT)
        if done is not None and done.returncode == 0:
            return f"a job of partition {name}, for {nodes[-1]}", ""
        refused = f"partition {name}: {'no answer' if done is None else done.stderr.strip()}"
    return "", refused


def _tier(partition: dict[str, str]) -> int:
    return int(partition.get("PriorityTier", "1"))


def _sbatch(partition: str, node: str) -> list[str]:
    return [
        "sbatch",
        f"--partition={partition}",
        f"--nodelist={node}",
        "--nodes=1",
        "--exclusive",
        "--time=1",
        f"--deadline={DEADLINE}",
        "--no-requeue",
        "--job-name=launchyard-drill",
        "--output=/dev/null",
        "--chdir=/",
    ]
