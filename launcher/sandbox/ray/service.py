"""The Ray sandbox: several nodes on this machine, one for this user, and a cluster file for it.

All its files are in one folder, 0700, but for Ray's own sockets and logs. Knows nothing of runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.sandbox import Facts
from launchyard.launcher.sandbox.daemons import check_same, make_settings
from launchyard.launcher.sandbox.folder import alone, state_folder, write_cluster
from launchyard.launcher.sandbox.ray import host
from launchyard.launcher.sandbox.ray.host import Settings
from launchyard.launcher.sandbox.ray.site import Site

CLUSTER = "sandbox-ray"
RUNS = "runs"


def up(*, report: Callable[[str], None], **asked: Any) -> Facts:
    """See Sandbox.up. asked: fields of Settings; one that runs must have them already; others stay as they are.

    UserError if this machine cannot do it, or if one with other settings runs.
    """
    site = Site(_folder())
    with alone(_folder()):
        if any(site.pid(daemon) for daemon in site.daemons):
            check_same(site.settings, "Ray", asked)
            if started := site.repair():
                report(f"started again: {', '.join(started)}")
        else:
            settings = make_settings(Settings, "Ray", asked)
            host.require()
            report(f"starting Ray {host.version()}: {settings.nodes} node{'s' * (settings.nodes > 1)}")
            site.start(settings)
        (_folder() / RUNS).mkdir(mode=0o700, exist_ok=True)
        write_cluster("ray", cluster_file(site), report=report)
    return status()


def down() -> bool:
    """See Sandbox.down. Jobs end at once; runs and logs stay. LaunchError if something does not end."""
    with alone(_folder()):
        return Site(_folder()).stop()


def status() -> Facts:
    """See Sandbox.status. Running means that every node lives."""
    site = Site(_folder())
    lacking = [daemon for daemon in site.daemons if site.pid(daemon) is None]
    if site.settings is None or len(lacking) == len(site.daemons):
        return Facts("ray", False, str(_folder()), next_commands=("launch sandbox up ray",))
    alive = site.alive()
    details = {
        "version": host.version(),
        "nodes": f"{len(alive)} alive" if alive else "the dashboard does not answer",
        "not_running": ", ".join(lacking) or None,
        **site.settings.model_dump(exclude={"nodes"}),
        "address": site.address,
        "cluster": CLUSTER,
    }
    following = (f"launch quickstart --cluster {CLUSTER} --nodes 2", "launch sandbox down ray")
    return Facts("ray", not lacking, str(_folder()), details, ("launch sandbox up ray",) * bool(lacking) + following)


def environment() -> dict[str, str]:
    """See Sandbox.environment. Ray's own commands find it only inside its network. UserError unless it is up."""
    site = Site(_folder())
    if site.settings is None:
        raise UserError("the Ray sandbox is not up", hint="launch sandbox up ray")
    return {"RAY_ADDRESS": f"{host.address_of(host.HEAD)}:{host.GCS_PORT}"}


def for_run(nodes: int, bundle: dict[str, float]) -> str:
    """The address of this machine's Ray, started with the resources of a run unless it is up; only `down` ends it."""
    site = Site(_folder())
    if site.settings is None or site.pid(host.HEAD) is None:
        cpus = max(1, int(bundle["CPU"]))
        gpus = int(bundle.get("GPU", 0))
        up(report=lambda line: click.echo(line, err=True), nodes=nodes, cpus_per_node=cpus, gpus_per_node=gpus)
    return site.address


def cluster_file(site: Site) -> dict[str, Any]:
    """`--cluster sandbox-ray`: the nodes of a site that is up, and runs in its folder."""
    settings = site.settings
    if settings is None:
        raise LaunchError(f"{site.folder}: no Ray sandbox is here", hint="launch sandbox up ray")
    return {
        "name": CLUSTER,
        "scheduler": "ray",
        "node": {"cpus": settings.cpus_per_node, "gpus": settings.gpus_per_node},
        "ray": {"address": site.address, "python": sys.executable},
        # The CPUs are pretended: without this each worker would start as many threads.
        "environment": {"OMP_NUM_THREADS": "1"},
        "storage": {"url": str(site.folder / RUNS)},
    }


def _folder() -> Path:
    return state_folder("ray")
