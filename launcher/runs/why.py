"""Explains the state of a run: one paragraph over all its attempts, from its run directory alone. Changes nothing."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from launchyard.launcher.agent.conclusion import last_step
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.agent.restart_policy import AGAIN_REASONS
from launchyard.launcher.agent.root_cause import OWN_CODE, Cause, find_cause, last_error_line
from launchyard.launcher.format import clock, duration, first_line
from launchyard.launcher.runs.checkpoints import Gone, newest_gone
from launchyard.launcher.runs.logs import log_of
from launchyard.launcher.runs.state import RunState, progress_text, state_of
from launchyard.run import events
from launchyard.run.goodput import Goodput, read_goodput
from launchyard.run.lease import last_heartbeat
from launchyard.run.records import FROM_MEMORY, RAY_STOP, SCANCEL, OutcomeRecord
from launchyard.run.rundir import RunDir


@dataclass(frozen=True)
class Why:
    """The paragraph, and the facts in it."""

    text: str
    state: str
    attempt: int | None = None
    ended: float | None = None
    reason: str | None = None
    cause: str | None = None
    log: str | None = None
    checkpoint: int | None = None
    steps_lost: int | None = None
    next: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def explain(run: RunDir, *, goodput: Goodput | None = None) -> Why:
    """Explains the end of a run: attempt, time and cause; the saved and the lost steps, and the next command.

    goodput: its account, by one who has read all rows for it already.
    """
    state = state_of(run)
    if state.attempt is None:
        text = f"{state.run_id} has never been started: no attempt was claimed."
        return Why(text, "pending", next=[f"launch resume {state.run_id}"])
    if state.alive:
        return _waiting(run, state) if state.state == "pending" else _going_on(run, state)
    if state.state == "unknown":
        return _unknown(run, state)
    record = run.outcome()
    if record is None or record.attempt < state.attempt:
        record = run.outcome(state.attempt)
    if record is None and state.state == "stopped":  # known from its scheduler
        record = OutcomeRecord(
            outcome="stopped", reason=state.reason or "", message=state.message, attempt=state.attempt,
            step=last_step(run, state.attempt), time=state.since or time.time(),
        )  # fmt: skip
    return _ended(run, state, record, goodput)


def _waiting(run: RunDir, state: RunState) -> Why:
    """Explains a run in the queue of a scheduler, for the first time or again."""
    text = f"{state.run_id} waits in the queue as job {state.job_id}: {state.queue or 'no reason is given'}."
    if state.start:
        text += f" It is expected to start at {clock(state.start, seconds=False)}."
    text += _before(run, run.attempts())
    return Why(text, state.state, attempt=state.attempt, checkpoint=state.checkpoint)


def _unknown(run: RunDir, state: RunState) -> Why:
    """Explains a run without a heartbeat whose scheduler does not answer."""
    text = f"{state.run_id}: {state.queue}. Whether job {state.job_id} waits or has ended is not known before it does."
    return Why(f"{text}{_before(run, run.attempts())}", state.state, attempt=state.attempt, checkpoint=state.checkpoint)


def _before(run: RunDir, attempts: list[int]) -> str:
    """The end of the last of these attempts that has an outcome."""
    outcomes = [record for attempt in attempts if (record := run.outcome(attempt)) is not None]
    return f" Before it, {_sentence(run, outcomes[-1])}" if outcomes else ""


def _going_on(run: RunDir, state: RunState) -> Why:
    assert state.attempt is not None
    doing = "silent" if state.state == "unknown" else state.state
    text = f"{state.run_id} has not ended: attempt {state.attempt} is {doing} on {state.host}, process {state.pid}"
    progress = progress_text(state)
    text += f" ({progress})." if progress else "."
    text += f" {told}" if (told := from_memory_text(run)) else ""
    text += f" {told}" if (told := interventions_text(run)) else ""
    text += _before(run, [attempt for attempt in run.attempts() if attempt < (state.attempt or 0)])
    if state.queue:
        text += f" {_capital(state.queue)}; this is from its directory."
    return Why(text, state.state, attempt=state.attempt, checkpoint=state.checkpoint)


def _ended(run: RunDir, state: RunState, record: OutcomeRecord | None, goodput: Goodput | None) -> Why:
    attempt = state.attempt
    assert attempt is not None
    saved = state.checkpoint
    lost = steps_lost(run, attempt, state.checkpoint)
    if record is not None:
        reason = record.reason
        cause = record.message
        ended = record.time
        began = _sentence(run, record)
        log = log_of(run, record)
    else:
        found = _lost_cause(run, attempt) if attempt in run.attempts() else _never_began(run, state)
        reason = found.reason
        cause = found.message
        ended = last_heartbeat(run, attempt)
        cause += f" ({state.queue})" if state.queue else ""
        began = f"{_capital(cause)}."
        log = None
    gone = newest_gone(run, state.run_id)
    command, advice = _advice(state, record, gone)
    checkpoint = _checkpoint_text(saved, lost, gone)
    parts = [
        f"{state.run_id}: {began}",
        _history(run, attempt),
        _open_failures(run, attempt),
        from_memory_text(run),
        interventions_text(run),
        checkpoint,
        _spent(goodput or read_goodput(run)),
        advice,
    ]
    if record is not None and record.outcome == "failed":
        parts.insert(-1, f"Its log: {log}.")
    if record is not None and state.state == "lost":
        queue = f" ({state.queue})" if state.queue else ""
        parts.insert(1, f"Nobody started it again: its owner, process {state.pid} on {state.host}, is gone{queue}.")
    return Why(
        " ".join(part for part in parts if part),
        state.state,
        attempt=attempt,
        ended=ended or None,
        reason=reason,
        cause=cause,
        log=log,
        checkpoint=saved,
        steps_lost=lost,
        next=[command],
    )


def _sentence(run: RunDir, record: OutcomeRecord) -> str:
    """The end of one attempt, as a sentence."""
    when = clock(record.time)
    start = f"attempt {record.attempt}"
    if record.outcome == "completed":
        return f"{start} completed all {record.step} steps at {when}."
    at = f" at step {record.step}" if record.step is not None else ""
    if record.outcome == "stopped":
        unsaved = record.step and record.checkpoint is None and record.reason not in ("cancelled", SCANCEL, RAY_STOP)
        more = f": {first_line(record.message)}" if unsaved else ""
        return f"{start} {_STOPPED.get(record.reason, f'was stopped ({record.reason})')}{at} at {when}{more}."
    others = len({error.get("rank") for error in run.errors(record.attempt)}) - 1
    more = f" ({others} other rank{'s' * (others > 1)} failed after it)" if others > 0 else ""
    return f"{start} failed{at} at {when}: {first_line(record.message).rstrip('.')}{more}."


_STOPPED = {
    "stop": "was stopped by a user",
    "cancelled": "was cancelled by a user",
    "terminated": "was stopped by a TERM signal",
    "preempted": "was preempted",
    "time limit": "reached its time limit",
    SCANCEL: "was ended with scancel",
    RAY_STOP: "was ended with ray job stop",
}


def _never_began(run: RunDir, state: RunState) -> Cause:
    """Its job ended before the owner could claim an attempt: a command of `setup`, or Python itself."""
    from launchyard.launcher.backends.base import load_backend

    job = newest_job(run)
    log = load_backend(job.backend).job_log(run) if job else ""
    detail = _setup_error(log) or last_error_line(log)
    return Cause("no start", f"job {state.job_id} ended before anything of the run had begun{detail}")


def _setup_error(log: str) -> str:
    """The command of `setup` that ended the job, and its own last message; empty if none did."""
    from launchyard.launcher.backends.request import SETUP_ERROR

    before, found, after = log.rpartition(f"{SETUP_ERROR}: ")
    message = before.strip().rpartition("\n")[2]
    return f": {first_line(after)}{f', with the message: {message}' if message else ''}" if found else ""


def _lost_cause(run: RunDir, attempt: int) -> Cause:
    """No outcome: the owner was killed, or its machine went away."""
    job = run.job(attempt)
    seen = last_heartbeat(run, attempt)
    ago = f", last seen {duration(max(0.0, time.time() - seen))} ago" if seen else ""
    message = (
        f"attempt {attempt} has no outcome: its owner (process {job.pid} on {job.host}) is gone{ago}; it was killed"
    )
    if run.errors(attempt):
        message += f", after {find_cause(run, attempt).message}"
    return Cause("owner gone", message + ", or its machine went down")


def _history(run: RunDir, newest: int) -> str:
    """Earlier attempts in half a sentence."""
    outcomes = [run.outcome(attempt) for attempt in run.attempts() if attempt < newest]
    failed = [record for record in outcomes if record is not None and record.outcome == "failed"]
    again = [record for record in outcomes if record is not None and record.reason in AGAIN_REASONS]
    if not failed and not again:
        return ""
    parts = []
    if failed:
        same = len({first_line(record.message) for record in failed}) == 1
        named = f" ({'all ' if len(failed) > 1 and same else 'last '}by: {first_line(failed[-1].message, 160)})"
        parts.append(f"{len(failed)} earlier attempt{'s' * (len(failed) > 1)} failed{named}")
    if again:
        parts.append(f"{len(again)} earlier attempt{'s' * (len(again) > 1)} ended by preemption or a time limit")
    return f"{_capital('; '.join(parts))}."


def _open_failures(run: RunDir, attempt: int) -> str:
    """Failures that were open when an attempt ended: its last save, and its store."""
    failed: dict[str, Any] | None = None
    silent: dict[str, Any] | None = None
    for event in run.events(attempt):
        match event.get("event"):
            case events.SAVE_FAILED:
                failed = event
            case events.SAVED:
                failed = None
            case events.STORE_TROUBLE:
                silent = event
            case events.STORE_ANSWERS:
                silent = None
    sentences = []
    if failed is not None:
        sentences.append(
            f"Its last save, of step {failed.get('step')}, failed: {first_line(str(failed.get('message')))}."
        )
    if silent is not None:
        sentences.append(f"Its store had failed: {first_line(str(silent.get('message')))}.")
    return " ".join(sentences)


def from_memory_text(run: RunDir) -> str:
    """Attempts that lost next to nothing, for their agents had the state in memory, or why the last one had not."""
    found = [(attempt, event) for attempt in run.attempts() for event in run.events(attempt)]
    starts = [(attempt, one["step"]) for attempt, one in found if one.get("source") == FROM_MEMORY]
    missed = [(attempt, str(one["message"])) for attempt, one in found if one["event"] == events.SNAPSHOTS_LOST]
    if missed and (not starts or missed[-1][0] > starts[-1][0]):
        attempt, why = missed[-1]
        return f"Attempt {attempt} could not go on from memory: {why}."
    if not starts:
        return ""
    attempt, step = starts[-1]
    times = f" ({len(starts)} attempts did so in all)" if len(starts) > 1 else ""
    return f"Attempt {attempt} went on from step {step} in memory{times}."


def interventions_text(run: RunDir) -> str:
    """Updates that were left out or taken back; empty if there are none. Attempts that made them again count once."""
    found = [event for attempt in run.attempts() for event in run.events(attempt)]
    left_out = {int(one["step"]): str(one.get("cause")) for one in found if one["event"] == events.UPDATE_SKIPPED}
    back = {int(one.get("at", 0)): one for one in found if one["event"] == events.REWOUND}
    sentences = []
    if left_out:
        listed = ", ".join(f"step {step} ({_HARMS.get(cause, cause)})" for step, cause in sorted(left_out.items())[-3:])
        more = f" of {len(left_out)}" if len(left_out) > 3 else ""
        sentences.append(f"Updates were left out, the last{more}: {listed}.")
    if back:
        at, event = max(back.items())
        times = f" ({len(back)} times in all)" if len(back) > 1 else ""
        why = _HARMS.get(str(event.get("cause")), "")
        sentences.append(f"Training went back from step {at} to step {event['step']}{times}: {why}.")
    return " ".join(sentences)


_HARMS = {"nonfinite": "its loss was no number", "spike": "its loss had jumped up"}


def _spent(goodput: Goodput | None) -> str:
    """The shares of lost time, if there are any."""
    return goodput_text(goodput) if goodput is not None and goodput.seconds["productive"] > 0 else ""


def goodput_text(goodput: Goodput) -> str:
    """`Of its 2h 07m 93% were productive; the rest: start 4%, recomputed 2%.`"""
    shares = {cause: seconds / goodput.wall for cause, seconds in goodput.seconds.items()}
    productive = shares.pop("productive")
    lost = sorted(shares.items(), key=lambda item: -item[1])
    rest = ", ".join(f"{cause.replace('_', ' ')} {share:.0%}" for cause, share in lost[:3] if share >= 0.01)
    text = f"Of its {duration(goodput.wall)} {productive:.0%} were productive"
    return f"{text}; the rest: {rest}." if rest else f"{text}."


def _capital(sentence: str) -> str:
    return f"{sentence[:1].upper()}{sentence[1:]}"


def steps_lost(run: RunDir, attempt: int, saved: int | None) -> int | None:
    """Finished steps that no checkpoint holds, of an attempt or in memory before it; None if it finished none."""
    reached = last_step(run, attempt)
    if reached is None:  # it may have gone on from memory, beyond the newest checkpoint
        started = run.start_step(attempt) or 0
        return started - (saved or 0) if started > (saved or 0) else None
    return max(0, reached - (saved or 0))


def _checkpoint_text(saved: int | None, lost: int | None, gone: Gone | None) -> str:
    none = "No checkpoint was saved" if gone is None else "There is no checkpoint"
    text = f"The newest checkpoint is of step {saved}" if saved is not None else none
    if gone is not None:
        text = f"{_capital(gone.what)}. {text}"
    if lost is None:
        return f"{text}."
    return f"{text}; {'no step is' if lost == 0 else f'{lost} step is' if lost == 1 else f'{lost} steps are'} lost."


def _advice(state: RunState, record: OutcomeRecord | None, gone: Gone | None) -> tuple[str, str]:
    """The command to type, and the sentence around it."""
    resume = f"launch resume {state.run_id}"
    if gone is not None:  # a resume would refuse
        return gone.go_back[0], f"Bring it back, or go back on purpose: {gone.go_back[0]}."
    if record is not None and record.outcome == "completed":
        longer = f"{resume} train.max_steps=N"
        return longer, f"To train longer: {longer}."
    if record is not None and record.fatal:
        if record.reason == OWN_CODE:  # the run goes on with its copy, unless it is named
            resume = f"{resume} code=FILE"
        return resume, f"Trying again unchanged would end the same way, so it was not tried. Once fixed: {resume}."
    where = f"from step {state.checkpoint}" if state.checkpoint is not None else "from the beginning"
    return resume, f"To go on {where}: {resume}."
