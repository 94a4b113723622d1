"""CPUs of the nodes that a run gets, as SLURM knows them: without a number it gives all workers of a node one core.

Asked where a plan is made, for a cluster file that leaves node.cpus out.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from launchyard.launcher.backends.slurm.client import Controller, facts
from launchyard.launcher.backends.slurm.request import options_of

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster

# Options of sbatch that give the number in another way.
TOLD = {"cpus-per-gpu", "cpus-per-task", "cores-per-socket", "threads-per-core", "extra-node-info"}


def node_cpus(cluster: Cluster, gpus: int) -> tuple[int | None, str]:
    """Returns the CPUs to ask for on each node, and a note on them; None and a note if SLURM cannot be asked."""
    extra = options_of(cluster).extra
    if cluster.node.cpus is not None or TOLD & extra.keys():
        told = extra.get("cpus-per-task")  # srun does not take it from sbatch
        return told if isinstance(told, int) and cluster.node.cpus is None else None, ""
    unset = f"node.cpus of cluster {cluster.name} is not set"
    cpus = cpus_of(cluster, gpus)
    if cpus is None:
        return None, f"{unset}, and SLURM cannot be asked here: most sites then give all workers of a node one core"
    return cpus, f"{unset}: {cpus} are asked for, by what the nodes have"


def cpus_of(cluster: Cluster, gpus: int) -> int | None:
    """Returns the CPUs of the smallest node that can serve, or the share of its GPUs; None if not known."""
    slurm = Controller(cluster.environment)
    name = (options_of(cluster).partition or "").split(",")[0]
    chosen = [f"--partition={name}"] if name else []
    shown = slurm.output_of(["sinfo", "--noheader", "--exact", *chosen, "--format=%P|%c|%G|%N"])
    rows = [parts for line in shown.splitlines() if len(parts := line.strip().split("|")) == 4]
    ours = [row for row in rows if name or row[0].endswith("*")]  # sinfo marks the default partition
    fit = [(int(cpus), gpus_in(gres), nodes) for _, cpus, gres, nodes in ours if cpus.isdigit()]
    fit = [one for one in fit if one[1] >= gpus]
    if not fit:
        return None
    cpus, has, nodes = min(fit)
    usable = min(_usable(slurm, nodes) or cpus, _limit(slurm, ours[0][0].rstrip("*")))
    return max(1, usable * gpus // has) if 0 < gpus < has else usable


def gpus_in(gres: str) -> int:
    """The GPUs in a node's generic resources, such as gpu:h100:8(S:0-1),nvme:1."""
    return sum(int(count) for count in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", gres))


def _usable(slurm: Controller, nodes: str) -> int | None:
    """The CPUs of a node that jobs may have: some sites keep cores for the system."""
    first = next(iter(slurm.hostnames(nodes)), "")
    shown = facts(slurm.output_of(["scontrol", "show", "node", first])) if first else {}
    number = shown.get("CPUEfctv") or shown.get("CPUTot") or ""
    return int(number) if number.isdigit() else None


def _limit(slurm: Controller, partition: str) -> int:
    """MaxCPUsPerNode of a partition."""
    number = next(iter(slurm.partitions(partition)), {}).get("MaxCPUsPerNode", "")
    return int(number) if number.isdigit() else sys.maxsize
