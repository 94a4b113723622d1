"""Findings about the queue, and about the environment of a job."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence

from launchyard.host.environment import own_environment
from launchyard.host.processes import python_argv
from launchyard.launcher.backends.cluster import Cluster, store_environment
from launchyard.launcher.backends.example.client import Spool
from launchyard.launcher.backends.example.request import options_of
from launchyard.launcher.backends.findings import Finding, node_findings
from launchyard.storage import files

PROBE = "launchyard.launcher.doctor.node_probe"


def doctor(cluster: Cluster, folder: str | None, saves: Sequence[float]) -> Iterator[Finding]:
    options = options_of(cluster)
    spool = Spool(options.spool)
    there = next(path for path in (spool.folder, *spool.folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        fix = "example.spool of the cluster file: a folder that you may write"
        yield Finding(what="queue", level="error", found=f"{there} cannot be written", fix=fix)
        return
    found = f"{spool.folder} · {options.slots} at a time, {len(spool.jobs())} there now"
    yield Finding(what="queue", level="ok", found=found)
    if folder is not None:
        yield from _node(cluster, folder)


def _node(cluster: Cluster, folder: str) -> Iterator[Finding]:
    """A real scheduler sends the probe to a node as a short job; here the node is this machine."""
    token = secrets.token_hex(8)
    files.write(f"{folder}/{token}", token.encode())
    env = {**own_environment(), **cluster.environment, **store_environment(cluster.storage.options)}
    argv = [*python_argv(sys.executable), "-m", PROBE, folder, token]
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        yield Finding(what="node", level="error", found=done.stderr.strip()[-500:], fix="see the message")
        return
    yield from node_findings(json.loads(done.stdout))
