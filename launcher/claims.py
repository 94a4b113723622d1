"""Who owns a run: claiming attempts, heartbeats, and telling a living owner from a dead one. Knows no workers.

An attempt belongs to whoever created its job.json. The newest attempt's owner owns the run for as long as it lives.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Literal

from launcher.errors import UserError
from launcher.processes import is_alive, started_at, wait_until
from training.rundir import Job, RunDir

HEARTBEAT_SECONDS = 5.0
HEARTBEAT_FRESH_SECONDS = 60.0
LEAVE_SECONDS = 5.0


def newest_job(run: RunDir) -> Job | None:
    """The job of the newest attempt; None if nobody has ever claimed one."""
    attempts = run.attempts()
    return run.job(attempts[-1]) if attempts else None


def owner_alive(run: RunDir, job: Job | None = None) -> bool:
    """Does the owner of the newest attempt (or of `job`) live? On another host its heartbeat tells."""
    job = job or newest_job(run)
    if job is None:
        return False
    if job.host == socket.gethostname():
        return is_alive(job.pid, job.pid_started)
    return abs(time.time() - last_heartbeat(run, job.attempt)) < HEARTBEAT_FRESH_SECONDS


def last_heartbeat(run: RunDir, attempt: int) -> float:
    """When the owner of an attempt last said that it lives, in seconds since the epoch; 0 if never."""
    try:
        return float(run.read_json(f"{run.attempt_dir(attempt)}/heartbeat.json")["time"])
    except (FileNotFoundError, ValueError, KeyError):
        return 0.0


def refuse_if_alive(run: RunDir) -> None:
    """UserError that names the owner, if the run has a living one that is not this process."""
    _refuse_owner(run, newest_job(run))


def _refuse_owner(run: RunDir, job: Job | None) -> None:
    if job is None or (job.pid == os.getpid() and job.host == socket.gethostname()):
        return
    if _has_ended(run, job):  # its owner has said its last word and is about to leave
        wait_until(lambda: not owner_alive(run, job), seconds=LEAVE_SECONDS)
    if owner_alive(run, job):
        raise UserError(
            f"{run.url} is running already: attempt {job.attempt}, process {job.pid} on {job.host}, "
            f"since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(job.created))}",
            hint="stop it first (launch stop), or follow it (launch logs -f)",
        )


def _has_ended(run: RunDir, job: Job) -> bool:
    record = run.outcome()
    return record is not None and record.attempt >= job.attempt


def claim_next(
    run: RunDir,
    *,
    backend: str,
    job_id: str,
    nnodes: int,
    nproc_per_node: int,
    device: Literal["cpu", "cuda"],
    overrides: dict[str, Any],
) -> Job:
    """Claim the next attempt for this process. UserError if a living job has the run or was faster."""
    # One look decides both who is asked whether he lives and which number is next: whoever claims in between takes it.
    attempts = run.attempts()
    _refuse_owner(run, run.job(attempts[-1]) if attempts else None)
    job = Job(
        attempt=attempts[-1] + 1 if attempts else 0,
        backend=backend,
        job_id=job_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        pid_started=started_at(os.getpid()) or 0.0,
        created=time.time(),
        nnodes=nnodes,
        nproc_per_node=nproc_per_node,
        device=device,
        overrides=overrides,
    )
    try:
        run.claim_attempt(job)
    except FileExistsError:
        other = run.job(job.attempt)
        raise UserError(
            f"{run.url}: process {other.pid} on {other.host} has just claimed attempt {job.attempt}",
            hint="follow it: launch logs -f",
        ) from None
    return job


class Heartbeat:
    """Rewrites an attempt's heartbeat.json now and then, for readers on other hosts."""

    def __init__(self, run: RunDir, attempt: int) -> None:
        self._run, self._name, self._last = run, f"{run.attempt_dir(attempt)}/heartbeat.json", 0.0

    def beat(self) -> None:
        now = time.monotonic()
        if now - self._last >= HEARTBEAT_SECONDS or self._last == 0.0:
            self._last = now
            self._run.write_json(self._name, {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid()})
