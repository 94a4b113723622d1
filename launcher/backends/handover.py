"""The launcher's part that all places with a scheduler share: a job is handed over, cancelled, or taken back.

Knows no scheduler.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.agent.signals import CANCELLED
from launchyard.run.records import Job, OutcomeRecord, Submission
from launchyard.run.rundir import RunDir

CANCEL_MESSAGE = "cancelled, nothing was saved"


def hand_over(run: RunDir, waiting: Submission, send: Callable[[int], str], *, take_back: Callable[[int], None]) -> Job:
    """Records the submission and hands it to the scheduler: send(its number) -> the job's id.

    take_back: removes all else that was made for it, if it is refused; nothing is queued then.
    """
    number = run.submit(waiting)
    try:
        job_id = send(number)
    except BaseException:
        run.withdraw(number)
        take_back(number)
        raise
    run.accepted(number, job_id)
    last = run.outcome()
    if last is not None and last.attempt not in run.attempts():  # of a job that was taken back before it began
        run.clear_outcome()
    job = newest_job(run)
    assert job is not None
    return job


def record_cancel(run: RunDir, job: Job) -> None:
    """Records the end of a cancelled job whose owner could not. An attempt that has ended by itself keeps its own."""
    began = job.attempt in run.attempts()
    message = CANCEL_MESSAGE if began else "taken back before it began"
    ours = OutcomeRecord(outcome="stopped", reason=CANCELLED, message=message, attempt=job.attempt, time=time.time())
    theirs = run.outcome(job.attempt) if began else None
    if began and theirs is None:
        run.write_outcome(ours)
    last = run.outcome()
    if last is None or last.attempt < job.attempt:
        ending = ours.model_dump(include={"outcome", "reason", "time"})
        run.write_outcome(ours if theirs is None else theirs.model_copy(update=ending), of_run=True)
