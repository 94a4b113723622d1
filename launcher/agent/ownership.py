"""Who owns a run: claiming attempts, heartbeats, and telling a living owner from a dead one. Knows no workers.

An attempt belongs to whoever created its job.json. The newest attempt's owner owns the run for as long as it lives:
on this host its process tells, on another one its heartbeat, a lease that expires by itself. Its age is told by the
clock of the store or file server alone, so clocks may differ. Who was taken for dead and is not is fenced out at its
next commit (training/checkpoint/checkpointer.py).
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Literal

from launchyard.errors import UserError
from launchyard.host.processes import is_alive, started_at, wait_until
from launchyard.run.lease import LEASE_SECONDS, heartbeat_age, last_heartbeat
from launchyard.run.records import Job
from launchyard.run.rundir import RunDir

LOOK_SECONDS = 12.0  # at a heartbeat that has stopped, before its run is taken over: its store may just be back
LEAVE_SECONDS = 5.0


def newest_job(run: RunDir) -> Job | None:
    """The job that stands for the run now: of the newest attempt, or one that waits in a queue to make the next."""
    attempts = run.attempts()
    job = run.job(attempts[-1]) if attempts else None
    waiting = run.newest_submission() if job is None or job.backend != "local" else None
    if waiting is None or (job is not None and (job.job_id == waiting.job_id or job.created > waiting.submitted)):
        return job
    return Job(
        attempt=attempts[-1] + 1 if attempts else 0,
        backend=waiting.backend,
        job_id=waiting.job_id,
        host="",
        pid=0,
        pid_started=0.0,
        created=waiting.submitted,
        nnodes=waiting.nnodes,
        nproc_per_node=waiting.nproc_per_node,
        device=waiting.device,
        overrides=waiting.overrides,
    )


def owner_alive(run: RunDir, job: Job | None = None) -> bool:
    """Does the owner of the newest attempt (or of `job`) live? On another host its heartbeat tells."""
    job = job or newest_job(run)
    if job is None:
        return False
    if job.backend != "local":
        from launchyard.launcher.backends.base import load_backend

        return load_backend(job.backend).is_alive(run, job)
    if job.host == socket.gethostname():
        return is_alive(job.pid, job.pid_started)
    return heartbeat_age(run, job.attempt) < LEASE_SECONDS


def refuse_if_alive(run: RunDir) -> None:
    """UserError that names the owner, if the run has a living one that is not this process."""
    _refuse_owner(run, newest_job(run))


def _refuse_owner(run: RunDir, job: Job | None) -> None:
    if job is None or (job.pid == os.getpid() and job.host == socket.gethostname()):
        return
    if _has_ended(run, job):  # its owner has said its last word and is about to leave
        wait_until(lambda: not owner_alive(run, job), seconds=LEAVE_SECONDS)
    if owner_alive(run, job) or _beats_again(run, job):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created))
        where = f"attempt {job.attempt}, process {job.pid} on {job.host}" if job.host else f"job {job.job_id} waits"
        raise UserError(
            f"{run.url} is {'running' if job.host else 'queued'} already: {where}, since {since}",
            hint="stop it first (launch stop), or follow it (launch logs -f)",
        )


def _beats_again(run: RunDir, job: Job) -> bool:
    """Does an owner elsewhere, whose lease has expired without a word about its end, beat while we look?"""
    if job.host == socket.gethostname() or _has_ended(run, job) or run.outcome(job.attempt) is not None:
        return False
    if job.backend != "local":  # its scheduler has told
        return False
    before = last_heartbeat(run, job.attempt)
    return wait_until(lambda: last_heartbeat(run, job.attempt) != before, seconds=LOOK_SECONDS)


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
    before = run.job(attempts[-1]) if attempts else None
    if before is None or (before.backend, before.job_id) != (backend, job_id):  # else we were started again
        _refuse_owner(run, before)
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
