"""The SLURM sandbox: several nodes with fake GPUs on this machine, one for this user, and a cluster file for it.

All its files are in one folder, 0700. Knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.sandbox import Facts
from launchyard.launcher.sandbox.daemons import check_same, make_settings
from launchyard.launcher.sandbox.folder import alone, state_folder, write_cluster
from launchyard.launcher.sandbox.slurm import host
from launchyard.launcher.sandbox.slurm.conf import DEFAULT_PARTITION, Settings, memory_gib
from launchyard.launcher.sandbox.slurm.site import Site

CLUSTER = "sandbox-slurm"
RUNS = "runs"


def up(*, report: Callable[[str], None], **asked: Any) -> Facts:
    """See Sandbox.up. asked: fields of Settings; one that runs must have them already; others stay as they are.

    UserError if this machine cannot do it, or if one with other settings runs.
    """
    site = Site(_folder())
    with alone(_folder()):
        if any(site.pid(daemon) for daemon in site.daemons):
            check_same(site.settings, "SLURM", asked)
            if started := site.repair():
                report(f"started again: {', '.join(started)}")
        else:
            settings = make_settings(Settings, "SLURM", asked)
            host.require(accounting=settings.accounting, cgroup=settings.proctrack == "cgroup", report=report)
            report(f"starting SLURM {host.version()}: {settings.nodes} node{'s' * (settings.nodes > 1)}")
            site.start(settings)
            site.try_out()
        (_folder() / RUNS).mkdir(mode=0o700, exist_ok=True)
        write_cluster("slurm", cluster_file(site), report=report)
    return status()


def down() -> bool:
    """See Sandbox.down. Jobs end at once; runs and logs stay. LaunchError if something does not end."""
    with alone(_folder()):
        return Site(_folder()).stop()


def status() -> Facts:
    """See Sandbox.status. Running means that every daemon lives."""
    site = Site(_folder())
    lacking = [daemon for daemon in site.daemons if site.pid(daemon) is None]
    if site.settings is None or len(lacking) == len(site.daemons):
        return Facts("slurm", False, str(_folder()), next_commands=("launch sandbox up slurm",))
    details = {
        "version": host.version(),
        "nodes": _counted(site.node_states()) or "the controller does not answer",
        "not_running": ", ".join(lacking) or None,
        **site.settings.model_dump(exclude={"nodes"}),
        "slurm_conf": str(site.conf),
        "cluster": CLUSTER,
    }
    if lacking:
        following: tuple[str, ...] = ("launch sandbox up slurm", "launch sandbox down slurm")
    else:
        following = (
            f"launch quickstart --cluster {CLUSTER} --nodes 2",
            'eval "$(launch sandbox env slurm)" && sinfo',
            "launch sandbox down slurm",
        )
    return Facts("slurm", not lacking, str(_folder()), details, following)


def environment() -> dict[str, str]:
    """See Sandbox.environment. UserError unless it is up."""
    site = Site(_folder())
    if site.settings is None:
        raise UserError("the SLURM sandbox is not up", hint="launch sandbox up slurm")
    return {"SLURM_CONF": str(site.conf)}


def cluster_file(site: Site) -> dict[str, Any]:
    """`--cluster sandbox-slurm`: the nodes of a site that is up, and runs in its folder."""
    settings = site.settings
    if settings is None:
        raise LaunchError(f"{site.folder}: no SLURM sandbox is here", hint="launch sandbox up slurm")
    return {
        "name": CLUSTER,
        "scheduler": "slurm",
        "node": {"cpus": settings.cpus_per_node, "memory": f"{memory_gib(settings)}GiB"},
        # Its GPUs are pretended too: jobs get them, and train on the CPU.
        "slurm": {
            "partition": DEFAULT_PARTITION,
            "extra": {"gres": f"gpu:{settings.gpus_per_node}"} if settings.gpus_per_node else {},
        },
        # The CPUs are pretended: without this each worker would start as many threads.
        "environment": {"SLURM_CONF": str(site.conf), "OMP_NUM_THREADS": "1"},
        "storage": {"url": str(site.folder / RUNS)},
    }


def _folder() -> Path:
    return state_folder("slurm")


def _counted(states: dict[str, str]) -> str:
    """node1 idle, node2 idle, node3 down -> 2 idle, 1 down."""
    found = list(states.values())
    return ", ".join(f"{found.count(state)} {state}" for state in dict.fromkeys(found))
