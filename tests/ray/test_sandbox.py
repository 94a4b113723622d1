"""The Ray that the launcher starts for a person: found, looked at, and ended with all that is in it, and no other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest

from launchyard.run.rundir import RunDir
from tests.ray.runs import OnRay, Site

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
RAYS = ("raylet", "gcs_server")


def ray_processes() -> set[int]:
    return {process.pid for process in psutil.process_iter(["name"]) if process.info["name"] in RAYS}


def listening(pids: set[int]) -> list[int]:
    """Ports that these processes hold in this machine's own network."""
    found = []
    for connection in psutil.net_connections():
        if connection.pid in pids and connection.status == psutil.CONN_LISTEN:
            found.append(connection.laddr.port)
    return found


def test_a_ray_for_whoever_names_none(place: Site) -> None:
    """`--cluster ray` as it is bundled: the first run starts a Ray beside one that is there; `down` ends only it."""
    before = ray_processes()
    url = str(place.here / "runs" / "run")
    place.urls.append(url)
    try:
        place.ok("tiny.yaml", "--cluster", "ray", "--run-url", url, "train.max_steps=10", timeout=200)
        ours = ray_processes() - before
        assert len(ours) == 2, "a head, and a node on it"
        assert listening(ours) == []
        run = OnRay(place, RunDir(url), json.loads(place.ok("status", url, "--json"))["run_id"])
        run.wait(lambda: run.run.outcome(), 90)
        assert run.run.outcome().outcome == "completed"
        said = json.loads(place.ok("sandbox", "status", "ray", "--json"))
        assert (said["running"], said["nodes"]) == (True, "1 alive")
        socket = Path(said["address"].removeprefix("unix://"))
        assert socket.stat().st_mode & 0o077 == 0
        assert socket.parent.stat().st_mode & 0o077 == 0
        findings = json.loads(place.ok("doctor", "--cluster", "sandbox-ray", "--json"))["findings"]
        told = {finding["what"]: finding for finding in findings}
        assert {told[what]["level"] for what in ("Ray", "nodes", "node", "storage from a node")} == {"ok"}, findings
    finally:
        place.ok("sandbox", "down", "ray")
    assert ray_processes() == before
    assert place.cluster.site.alive() == set(place.cluster.nodes)
    assert not json.loads(place.ok("sandbox", "status", "ray", "--json", code=1) or "{}").get("running")
    assert not [name for name in os.listdir("/tmp") if name.startswith("lyray-") and _is_fresh(name, place)]


def _is_fresh(name: str, place: Site) -> bool:
    """Another folder than that of the tests' own Ray."""
    theirs = place.cluster.site.temporary
    path = Path("/tmp") / name
    return path != theirs and path.stat().st_uid == os.getuid() and path.stat().st_mtime > place.here.stat().st_mtime
