"""The queue: one JSON file for each job, first come, first served. Knows no run.

A job is its process. It counts as gone when that has ended, for any reason: nobody has to clean up after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launchyard.errors import UserError, user_errors
from launchyard.host import locks
from launchyard.host.folders import log_folder
from launchyard.host.processes import descendants, end_all, is_alive, started_at
from launchyard.launcher.backends.base import JobStatus
from launchyard.storage import files


class Spool:
    """The jobs in a folder. Its lock is held while a job is added or takes its turn."""

    def __init__(self, folder: str | None) -> None:
        """None: the user's own queue."""
        with user_errors("example.spool"):
            self.folder = Path(files.typed_path(folder)) if folder else Path(log_folder()).with_name("example")

    # -- for the launcher ----------------------------------------------------------------------------------------------
    def submit(self, text: str, start: Callable[[str], subprocess.Popen[bytes]]) -> str:
        """Add a job; its id. start(path of its file) -> its process, which waits for its turn."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                self._forget_the_dead()
                job_id = self._draw_id()
                path = self._path(job_id)
                child = start(str(path))
                record = {"host": socket.gethostname(), "pid": child.pid, "pid_started": started_at(child.pid)}
                files.write(str(path), json.dumps({**json.loads(text), **record, "state": "queued"}, indent=1).encode())
        except OSError as error:
            raise UserError(f"the queue in {self.folder} takes no job: {error}", hint="example.spool") from error
        child.returncode = 0  # it is meant to outlive us: no warning, and nobody waits for it
        return job_id

    def ask(self, job_id: str) -> JobStatus:
        """The state of a job, with the reason why it waits."""
        job = self._read(job_id)
        if job is None:
            return JobStatus("gone")
        if job["host"] != socket.gethostname():
            return JobStatus("unknown", reason=f"its queue is on {job['host']}")
        if not _lives(job):
            return JobStatus("gone")
        if job["state"] == "running":
            return JobStatus("running", "RUNNING", nodes=job["host"])
        ahead = len(self._ahead(job_id))
        reason = "it is about to start" if ahead < job["slots"] else f"jobs before it: {ahead}"
        return JobStatus("queued", "QUEUED", reason)

    def signal(self, job_id: str, number: signal.Signals) -> None:
        """UserError if the job is gone, or on another machine."""
        job = self._read_here(job_id)
        with contextlib.suppress(ProcessLookupError):
            os.kill(job["pid"], number)

    def end(self, job_id: str) -> None:
        """End all processes of a job now."""
        end_all(descendants(self._read_here(job_id)["pid"]))

    def jobs(self) -> dict[str, dict[str, Any]]:
        """Those that live, in the order in which they came."""
        names = sorted(path.stem for path in self.folder.glob("*.json"))
        found = {name: job for name in names if (job := self._read(name)) is not None}
        return {name: job for name, job in found.items() if _lives(job)}

    # -- for the job itself --------------------------------------------------------------------------------------------
    def take_turn(self, job_id: str) -> bool:
        """Returns True if the job runs from now on (or already). UserError if it was taken back."""
        with self._locked():
            job = self._read_here(job_id)
            if job["state"] != "running" and len(self._ahead(job_id)) >= job["slots"]:
                return False
            files.write(str(self._path(job_id)), json.dumps({**job, "state": "running"}, indent=1).encode())
            return True

    def _ahead(self, job_id: str) -> list[str]:
        """Jobs that came earlier, or run already."""
        others = {name: job for name, job in self.jobs().items() if name != job_id}
        return [name for name, job in others.items() if name < job_id or job["state"] == "running"]

    def _forget_the_dead(self) -> None:
        """A job does not remove its own file: then it would count as gone while its process still ends."""
        alive = self.jobs()
        for path in self.folder.glob("*.json"):
            if path.stem not in alive:
                path.unlink(missing_ok=True)

    def _draw_id(self) -> str:
        """The next number. It is never used again: a job is known by it for as long as its run directory exists."""
        counter = self.folder / "last"
        number = int(counter.read_text()) + 1 if counter.exists() else 1
        files.write(str(counter), str(number).encode())
        return f"{number:06d}"

    def _path(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.json"

    def _read(self, job_id: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._path(job_id).read_text()))
        except FileNotFoundError:
            return None

    def _read_here(self, job_id: str) -> dict[str, Any]:
        job = self._read(job_id)
        if job is None:
            raise UserError(f"job {job_id} is not in {self.folder}", hint="launch status")
        if job["host"] != socket.gethostname():
            raise UserError(f"job {job_id} is on {job['host']}", hint=f"do it on {job['host']}")
        return job

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return locks.exclusive(self.folder / "lock")


def _lives(job: dict[str, Any]) -> bool:
    """Always True for a job on another machine, where it is not known: it keeps its place."""
    return bool(job["host"] != socket.gethostname() or is_alive(job["pid"], job["pid_started"]))
