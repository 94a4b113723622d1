"""The state of each run, from its directory and its scheduler. Starts and stops nothing."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from launchyard.launcher.agent.liveness import Verdict
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.agent.root_cause import LOST_PEER
from launchyard.launcher.backends.base import JobStatus, judge_job, load_backend
from launchyard.launcher.format import progress_line
from launchyard.launcher.runs.facts import RunFacts
from launchyard.run import events
from launchyard.run.checkpoints import newest_checkpoint
from launchyard.run.lease import last_heartbeat
from launchyard.run.records import Job, OutcomeRecord
from launchyard.run.rows import pace_of
from launchyard.run.rundir import RunDir
from launchyard.run.tail import last_rows
from launchyard.storage.damage import JsonObject
from launchyard.training.sections.validation import MAIN

State = Literal[
    "pending", "starting", "running", "saving", "suspended", "stopped", "completed", "failed", "lost", "unknown",
    "unreachable",
]  # fmt: skip
SETTLED_SECONDS = 60.0  # after its outcome nothing of a run lives, and no scheduler has to be asked


# -- state -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RunState:
    """A run at this moment. Seconds since the epoch in `since`; loss in nats per token."""

    run_id: str
    name: str
    url: str
    state: State
    resumable: bool
    alive: bool
    attempt: int | None = None
    started_from: int | None = None  # the step from which that attempt went on
    source: str | None = None  # of the state of that step: memory or disk
    host: str | None = None
    pid: int | None = None
    step: int | None = None
    max_steps: int | None = None
    loss: float | None = None
    source_tokens: dict[str, int] | None = None  # of a mixture, up to `step`
    validation_losses: dict[str, float] | None = None  # by set, of the last validation of this attempt
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    checkpoint: int | None = None
    since: float | None = None
    reason: str | None = None
    message: str = ""
    job_id: str | None = None
    queue: str | None = None  # the reason of a wait, of a doubt, or of an end that left no outcome
    start: float | None = None  # expected, while it waits

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _validated(recorded: list[JsonObject]) -> dict[str, float] | None:
    done = [event for event in recorded if event.get("event") == events.VALIDATED]
    return {str(event.get("set") or MAIN): float(event["loss"]) for event in done} or None


def state_of(run: RunDir) -> RunState:
    """The state of a run. Costs a few small reads, however long the run is."""
    facts = RunFacts(run)
    common: dict[str, Any] = {"run_id": facts.run_id, "name": facts.name, "url": run.url}
    attempts = run.attempts()
    checkpoint = newest_checkpoint(run)
    job = newest_job(run)
    if job is None:
        return RunState(**common, state="pending", resumable=True, alive=False, checkpoint=checkpoint)
    seen = _poll(run, job)
    verdict = judge_job(run, job, seen)
    alive = verdict.alive
    ended = _ended(run, job, verdict) or _cancelled(job, seen, checkpoint)
    recorded = run.events(job.attempt)
    state = _state(verdict, ended, [str(event.get("event")) for event in recorded])
    if state == "lost" and _never_began(job, seen, attempts):
        state = "failed"
    if ended is None:
        common["queue"] = verdict.reason or None
        if load_backend(job.backend).TRAITS.scheduled:
            common |= {"job_id": job.job_id, "start": seen.start if seen.state == "queued" else None}
    started = next((event for event in recorded if event.get("event") == events.STARTED), {})
    common |= {"started_from": started.get("step"), "source": started.get("source")}
    rows = last_rows(run, attempts)
    row = rows[-1] if rows else {}
    pace = pace_of(rows)
    step = _step(row, job.attempt, ended, recorded, checkpoint)
    common |= {"alive": alive, "attempt": job.attempt, "host": job.host, "pid": job.pid, "checkpoint": checkpoint}
    common |= {"reason": ended.reason if ended else None, "message": ended.message if ended else ""}
    max_steps = facts.max_steps()
    return RunState(
        **common,
        state=state,
        resumable=verdict.free and state not in ("completed", "unknown"),
        step=step,
        max_steps=max_steps,
        loss=row.get("loss"),
        source_tokens=row.get("source_tokens"),
        validation_losses=_validated(recorded),
        tokens_per_second=pace.tokens_per_second if pace else None,
        eta_seconds=pace.seconds_to(max_steps, step=step or 0) if alive and pace and max_steps else None,
        since=_since(run, job, alive, ended, state),
    )


def _poll(run: RunDir, job: Job) -> JobStatus:
    """The job as its scheduler sees it."""
    backend = load_backend(job.backend)
    record = run.outcome() if backend.TRAITS.scheduled else None
    if record is not None and record.attempt >= job.attempt and time.time() - record.time > SETTLED_SECONDS:
        return JobStatus("gone")
    return backend.poll(run, job)


def _cancelled(job: Job, seen: JobStatus, checkpoint: int | None) -> OutcomeRecord | None:
    """The outcome of a job ended by the scheduler's own command, whose owner had no time to write one."""
    if seen.state != "gone" or not seen.scheduler_state.startswith(("CANCELLED", "STOPPED")):
        return None
    reason = load_backend(job.backend).TRAITS.cancelled_reason
    message = f"job {job.job_id} was cancelled"
    return OutcomeRecord(
        outcome="stopped", reason=reason, message=message, attempt=job.attempt, step=checkpoint, time=time.time()
    )


def _never_began(job: Job, seen: JobStatus, attempts: list[int]) -> bool:
    """Returns True for a job that its scheduler has seen fail before it claimed an attempt: nothing was lost."""
    return job.attempt not in attempts and seen.state == "gone" and seen.scheduler_state == "FAILED"


def _ended(run: RunDir, job: Job, verdict: Verdict) -> OutcomeRecord | None:
    """The outcome of the run; None while it goes on, or if its owner is gone and left none."""
    if verdict.state == "ended":
        return run.outcome()
    if not verdict.free:
        return None
    record = run.outcome(job.attempt)  # the owner died between the outcomes of attempt and run
    if record is None or (record.outcome == "stopped" and record.reason in ("preempted", "time limit")):
        return None
    if record.reason == LOST_PEER:  # with its owner, who alone knows the cause and would have gone on
        return None
    return record


def _state(verdict: Verdict, ended: OutcomeRecord | None, recorded: list[str]) -> State:
    if ended is not None:
        return ended.outcome
    if verdict.state != "running":
        return "unknown" if verdict.state == "ended" else verdict.state  # its outcome has just been removed
    if events.STOPPING in recorded or events.FINISHED in recorded:
        return "saving"
    return "running" if events.STARTED in recorded else "starting"


def _step(
    row: dict[str, Any],
    attempt: int,
    ended: OutcomeRecord | None,
    recorded: list[dict[str, Any]],
    checkpoint: int | None,
) -> int | None:
    """Finished steps: of the newest row, unless a newer attempt has gone on from before it."""
    if ended is not None and ended.outcome != "failed" and ended.step is not None:
        return ended.step
    started = next((int(event["step"]) for event in recorded if event.get("event") == events.STARTED), None)
    if row and (started is None or int(row.get("attempt", -1)) == attempt):
        return int(row["step"])
    return started if started is not None else checkpoint


def _since(run: RunDir, job: Job, alive: bool, ended: OutcomeRecord | None, state: State) -> float | None:
    if ended is not None:
        return ended.time
    gone = state in ("lost", "failed")
    return (last_heartbeat(run, job.attempt) if gone and not alive else None) or job.created


def progress_text(state: RunState) -> str:
    """The progress of a run, in a line."""
    return progress_line(
        step=state.step,
        max_steps=state.max_steps,
        loss=state.loss,
        tokens_per_second=state.tokens_per_second,
        eta_seconds=state.eta_seconds,
    )
