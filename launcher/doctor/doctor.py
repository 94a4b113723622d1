"""`launch doctor`: findings about a place, each ok, a warning or an error with its fix.

Reads and tries, and leaves nothing behind. The findings of a scheduler are those of launcher/backends/*/doctor.py.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator

from launchyard.errors import os_error_text, user_errors
from launchyard.host.folders import USER_FOLDERS
from launchyard.launcher.backends.base import load_doctor
from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.backends.findings import Finding, Level
from launchyard.launcher.doctor.store import store_findings
from launchyard.launcher.runs.find import of_cluster
from launchyard.run.events import SAVED
from launchyard.run.rundir import RunDir
from launchyard.storage import files, retry
from launchyard.storage.redact import redact

PROBE_FOLDER = ".launchyard-doctor"
LOW_DISK_BYTES = 20 << 30  # bytes: a few checkpoints of a small model


def examine(cluster: Cluster, *, with_job: bool) -> Iterator[Finding]:
    """All findings about a place, one after another. `with_job`: also from its nodes."""
    folder = f"{_storage_url(cluster)}/{PROBE_FOLDER}-{secrets.token_hex(4)}"
    try:
        yield from storage_findings(cluster, folder)
        yield from user_folder_findings()
        saves = [seconds for run in of_cluster(cluster.name) for seconds in _save_seconds(run)]
        yield from load_doctor(cluster.scheduler).doctor(cluster, folder if with_job else None, saves)
    finally:
        with contextlib.suppress(OSError, ValueError), retry.retry_budget(0):
            files.remove_folder(folder)


def _storage_url(cluster: Cluster) -> str:
    url = cluster.storage.url.rstrip("/")
    with user_errors("storage.url"):
        place = files.normal(files.typed_path(url))
    return place if files.is_remote(place) else os.path.abspath(place)


def _save_seconds(run: RunDir) -> Iterator[float]:
    for attempt in run.attempts()[-5:]:
        for event in run.events(attempt):
            if event.get("event") == SAVED and "seconds" in event:
                yield float(event["seconds"])


def storage_findings(cluster: Cluster, folder: str) -> Iterator[Finding]:
    """Tests that runs can be written there, that a create-only file is not overwritten, and the rights in a store."""
    shown = redact(_storage_url(cluster))
    name = f"{folder}/file"
    began = time.perf_counter()
    try:
        with retry.retry_budget(10.0):
            files.write(name, b"1")
            seconds = time.perf_counter() - began
            read = files.read(name)
    except (OSError, ValueError) as error:
        fix = "storage in the cluster file; see docs/guides/object-storage.md for credentials and endpoints"
        if not files.is_remote(folder):
            fix = "another folder: storage in the cluster file, or --run-url"
        problem = os_error_text(error) if isinstance(error, OSError) else str(error)
        yield Finding(what="storage", level="error", found=f"{shown}: cannot be written: {problem}", fix=fix)
        return
    if read != b"1":
        yield Finding(what="storage", level="error", found=f"{shown}: reads other bytes than were written")
        return
    yield Finding(what="storage", level="ok", found=f"{shown} · written and read · {seconds * 1000:.0f} ms a file")
    yield create_finding(f"{folder}/once")
    if files.is_remote(folder):
        yield from store_findings(folder)
        return
    free = shutil.disk_usage(folder).free
    level: Level = "ok" if free > LOW_DISK_BYTES else "warning"
    yield Finding(
        what="room", level=level, found=f"{free / 1e9:.0f} GB free", fix="" if level == "ok" else "free some space"
    )


def user_folder_findings() -> Iterator[Finding]:
    """Tests that a launch could write to the user's own folders, and makes none of them."""
    for variable, place in USER_FOLDERS.items():
        there = next(folder for folder in (place(), *place().parents) if os.path.exists(folder))
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            found = f"{place()}: cannot be written"
        elif not shutil.disk_usage(there).free:
            found = f"{place()}: no space is left"
        else:
            continue
        fix = f"every launch writes there; set {variable} to another folder"
        yield Finding(what="your folders", level="error", found=found, fix=fix)


def create_finding(name: str) -> Finding:
    """Tests that of two writers of a new file one is told so."""
    fix = "use a store that honours If-None-Match (AWS, GCS, Azure, MinIO, SeaweedFS do)"
    try:
        with retry.retry_budget(10.0):
            files.create(name, b"1")
            files.create(name, b"2")
    except FileExistsError:
        return Finding(what="create-only", level="ok", found="a file that exists is not created again")
    except OSError as error:
        return Finding(what="create-only", level="error", found=f"a file cannot be created: {error}", fix=fix)
    return Finding(
        what="create-only",
        level="warning",
        found="the store lets two writers create one file: two launches of one run might not notice each other",
        fix=fix,
    )
