"""Findings about a Ray cluster and its nodes, and their meaning for a run."""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from launchyard.errors import LaunchError
from launchyard.launcher.backends.cluster import Cluster, store_environment
from launchyard.launcher.backends.findings import Finding, node_findings
from launchyard.launcher.backends.ray import request as ray_request
from launchyard.launcher.backends.ray.backend import run_job, send_code
from launchyard.launcher.backends.ray.client import Dashboard
from launchyard.launcher.backends.request import Ask
from launchyard.run.records import Shape
from launchyard.storage import files

OLDEST = (2, 50)


def doctor(cluster: Cluster, folder: str | None, saves: Sequence[float]) -> Iterator[Finding]:
    """`folder`: for the answer of a job on a node; None: no job."""
    options = ray_request.options_of(cluster)
    if options.address is None:
        found = "no address: the first run starts a Ray of this machine, and launch sandbox down ray ends it"
        yield Finding(what="Ray", level="ok", found=found)
        return
    ray = Dashboard(**options.place)
    try:
        version = str(ray.version()["ray_version"])
        nodes = [node for node in ray.nodes() if node.get("raylet", {}).get("state") == "ALIVE"]
    except LaunchError as error:
        yield Finding(what="Ray", level="error", found=str(error), fix=error.hint or "")
        return
    yield _version(version)
    yield _capacity(cluster, nodes)
    if folder is not None:
        yield from _node(cluster, ray, folder)


def _version(version: str) -> Finding:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        fix = f"Ray {'.'.join(map(str, OLDEST))} or later"
        return Finding(what="Ray", level="warning", found=f"{version}: not tried with this version", fix=fix)
    return Finding(what="Ray", level="ok", found=version)


def _capacity(cluster: Cluster, nodes: list[dict[str, Any]]) -> Finding:
    """The number of nodes that have the resources a run asks of each."""
    asked = ray_request.bundle_of(cluster, _ask(cluster, "", cluster.node.gpus or 0))
    amounts = ", ".join(f"{amount:g} {name}" for name, amount in asked.items())
    totals = [node["raylet"].get("resourcesTotal", {}) for node in nodes]
    fit = sum(all(total.get(name, 0) >= amount for name, amount in asked.items()) for total in totals)
    found = f"{len(nodes)} alive, {fit} of them with {amounts} or more"
    if fit:
        return Finding(what="nodes", level="ok", found=found)
    return Finding(what="nodes", level="error", found=found, fix="node and ray.resources of the cluster file")


def _node(cluster: Cluster, ray: Dashboard, folder: str) -> Iterator[Finding]:
    """From a node itself: the environment, the way back, the storage."""
    token = secrets.token_hex(8)
    printed = list[str]()
    files.write(f"{folder}/{token}", token.encode())
    argv = ["-m", "launchyard.launcher.doctor.node_probe", folder, token]
    planned = ray_request.make_request(cluster, _ask(cluster, folder, 0))
    try:
        code = send_code(ray)
        request = ray_request.short_job(planned.job, argv=argv, code=code)
        failed = run_job(ray, request, on_output=printed.append)
    except LaunchError as error:
        failed = str(error)
    answers = re.findall(r"\{.*\}", "".join(printed))
    if failed is not None or not answers:
        fix = "has the Python of the nodes launchyard's packages and Ray? ray.python and ray.runtime_env"
        yield Finding(what="node", level="error", found=(failed or "it printed nothing")[-500:], fix=fix)
        return
    yield from node_findings(json.loads(answers[-1]))


def _ask(cluster: Cluster, folder: str, gpus: int) -> Ask:
    return Ask(
        run_id="doctor",
        run_url=folder,
        shape=Shape(nproc_per_node=1, device="cpu"),
        gpus=gpus,
        sizes=(1,),
        environment={**cluster.environment, **store_environment(cluster.storage.options)},
        python=sys.executable,
        logs="",
    )
