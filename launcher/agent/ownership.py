"""Ownership of a run: the job that stands for it, and claiming its next attempt. Knows no workers and no scheduler.

An attempt belongs to whoever created its job.json. The newest attempt's owner owns the run for as long as it lives; the
test for that differs between places, so the caller passes it in. An owner that was taken for dead and is not is fenced
out at its next commit (training/checkpoint/commit.py).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from launchyard.errors import UserError
from launchyard.host.processes import started_at, wait_until
from launchyard.launcher.agent.liveness import Verdict
from launchyard.launcher.agent.restart_policy import AttemptSummary
from launchyard.launcher.format import clock
from launchyard.run.events import SAVED
from launchyard.run.frozen import plan_digest
from launchyard.run.lease import last_heartbeat
from launchyard.run.records import Job, Shape
from launchyard.run.rundir import RunDir

TAKEOVER_SECONDS = 12.0  # at a heartbeat that has stopped, before its run is taken over: its store may just be back
LEAVE_SECONDS = 5.0


Judge = Callable[[RunDir, Job], Verdict]  # asks the two witnesses about the owner of a job


def newest_job(run: RunDir) -> Job | None:
    """The job that stands for the run now: of the newest attempt, or one that waits in a queue to make the next."""
    attempts = run.attempts()
    job = run.job(attempts[-1]) if attempts else None
    waiting = run.newest_submission()
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
        overrides=waiting.overrides,
        **waiting.shape.model_dump(),
    )


def attempts_of(run: RunDir, job_id: str) -> Iterator[AttemptSummary]:
    """The attempts of a job and of those that it continues, newest first. A resume by hand begins with another job."""
    before = {submission.job_id: submission.continues for submission in run.submissions()}
    jobs = [job_id]
    while earlier := before.get(jobs[-1]):
        jobs.append(earlier)
    for number in reversed(run.attempts()):
        if run.job(number).job_id not in jobs:
            continue
        record = run.outcome(number)
        progressed = any(event.get("event") == SAVED for event in run.events(number))
        if record is None:  # killed with its node, or by the scheduler
            yield AttemptSummary(number, "stopped", "preempted", progressed=progressed)
        else:
            facts = {"progressed": progressed, "stepped": record.step is not None}
            yield AttemptSummary(number, record.outcome, record.reason, record.fatal, **facts)


def refuse_owner(run: RunDir, job: Job | None, judge: Judge) -> None:
    """UserError that names the owner, if `job` lives (or may) and is not this process."""
    if job is None or (job.pid == os.getpid() and job.host == socket.gethostname()):
        return
    verdict = judge(run, job)
    if verdict.state == "ended" and not verdict.free:  # its owner has written the outcome and is about to leave
        wait_until(lambda: judge(run, job).free, seconds=LEAVE_SECONDS)
        verdict = judge(run, job)
    if verdict.free and not (verdict.by_lease and _beats_again(run, job)):
        return
    since = clock(job.created)
    where = f"attempt {job.attempt}, process {job.pid} on {job.host}" if job.host else f"job {job.job_id} waits"
    doubt = f" ({verdict.reason})" if verdict.state == "unknown" and verdict.reason else ""
    raise UserError(
        f"{run.url} is {'running' if job.host else 'queued'} already: {where}, since {since}{doubt}",
        hint="stop it first (launch stop), or follow it (launch logs -f)",
    )


def _beats_again(run: RunDir, job: Job) -> bool:
    """Returns True if an owner whose lease has expired without an outcome beats while we wait."""
    if run.outcome(job.attempt) is not None:
        return False
    before = last_heartbeat(run, job.attempt)
    return wait_until(lambda: last_heartbeat(run, job.attempt) != before, seconds=TAKEOVER_SECONDS)


def claim_next(
    run: RunDir,
    *,
    backend: str,
    job_id: str,
    shape: Shape,
    overrides: dict[str, Any],
    judge: Judge,
    continues: str = "",
    patience: float = 0.0,
) -> Job:
    """Claim the next attempt for this process. UserError if a living job has the run or was faster.

    continues: a job that has handed the run to this one, and may still be leaving. patience: seconds to wait for the
    end of a lease, if the owner of the last attempt is known by its heartbeat alone.
    """
    # One listing decides both the owner to test and the next number: a claim made in between takes that number.
    attempts = run.attempts()
    before = run.job(attempts[-1]) if attempts else None
    ours = before is not None and before.backend == backend and before.job_id in (job_id, continues)
    if not ours:  # else we were started again
        if before is not None and judge(run, before).by_lease:
            wait_until(lambda: judge(run, before).free, seconds=patience, every=1.0)
        refuse_owner(run, before, judge)
    job = Job(
        attempt=attempts[-1] + 1 if attempts else 0,
        backend=backend,
        job_id=job_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        pid_started=started_at(os.getpid()) or 0.0,
        created=time.time(),
        overrides=overrides,
        plan_digest=plan_digest(run),
        **shape.model_dump(),
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
