"""`launch doctor`: what a run would meet in a place, each as ok, warning or error with its cure.

Looks and tries, and leaves nothing behind. What a scheduler says of itself is asked in
launcher/backends/slurm/doctor.py.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator

from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.backends.findings import Finding, Level
from launchyard.launcher.plan.hardware import probe_host
from launchyard.storage import files
from launchyard.storage.redact import redact

PROBE_FOLDER = ".launchyard-doctor"
LITTLE_ROOM = 20 << 30  # bytes: a few checkpoints of a small model


def examine(cluster: Cluster, *, with_job: bool) -> Iterator[Finding]:
    """Everything about a place, as it is found. `with_job`: also from its nodes."""
    yield from _here(cluster)
    folder = f"{_storage_url(cluster)}/{PROBE_FOLDER}-{secrets.token_hex(4)}"
    try:
        yield from storage_findings(cluster, folder)
        if cluster.scheduler == "slurm":
            from launchyard.launcher.backends.slurm.doctor import examine_slurm

            yield from examine_slurm(cluster, folder if with_job else None)
        if cluster.scheduler == "ray":
            from launchyard.launcher.backends.ray.doctor import examine_ray

            yield from examine_ray(cluster, folder if with_job else None)
    finally:
        with contextlib.suppress(OSError, ValueError), files.patience(0):
            files.remove_folder(folder)


def _storage_url(cluster: Cluster) -> str:
    url = cluster.storage.url.rstrip("/")
    return url if files.is_remote(url) else os.path.abspath(os.path.expanduser(files.normal(url)))


def _here(cluster: Cluster) -> Iterator[Finding]:
    """This machine: what it plans with, and trains with if it is the node itself."""
    from importlib.util import find_spec

    if cluster.scheduler != "local":
        return
    host = probe_host()
    if find_spec("torch") is None:
        yield Finding(what="torch", level="error", found="not installed", cure="pip install 'launchyard[train]'")
    else:
        from importlib import metadata

        yield Finding(what="torch", level="ok", found=metadata.version("torch"))
    gpus = ", ".join(sorted({gpu.name for gpu in host.gpus}))
    found = f"{len(host.gpus)} × {gpus}" if host.gpus else f"no GPU, {host.cpus} CPU cores"
    yield Finding(what="device", level="ok", found=found)


def storage_findings(cluster: Cluster, folder: str) -> Iterator[Finding]:
    """Can runs be written there, and does a file that is created only once stay what it was?"""
    shown, name = redact(_storage_url(cluster)), f"{folder}/once"
    began = time.perf_counter()
    try:
        with files.patience(10.0):
            files.create(name, b"1")
            seconds = time.perf_counter() - began
            read = files.read(name)
    except (OSError, ValueError) as error:
        cure = "storage in the cluster file; see docs/guides/object-storage.md for credentials and endpoints"
        yield Finding(what="storage", level="error", found=f"{shown}: cannot be written: {error}", cure=cure)
        return
    if read != b"1":
        yield Finding(what="storage", level="error", found=f"{shown}: reads other bytes than were written")
        return
    yield Finding(what="storage", level="ok", found=f"{shown} · written and read · {seconds * 1000:.0f} ms a file")
    try:
        files.create(name, b"2")
    except FileExistsError:
        yield Finding(what="create-only", level="ok", found="a file that exists is not created again")
    else:
        yield Finding(
            what="create-only",
            level="warning",
            found="the store lets two writers create one file: two launches of one run might not see each other",
            cure="use a store that honours If-None-Match (AWS, GCS, Azure, MinIO, SeaweedFS do)",
        )
    if not files.is_remote(folder):
        free = shutil.disk_usage(folder).free
        level: Level = "ok" if free > LITTLE_ROOM else "warning"
        yield Finding(
            what="room", level=level, found=f"{free / 1e9:.0f} GB free", cure="" if level == "ok" else "make room"
        )
