"""Logs of a run, all workers in one, each line with its origin. Reads the run directory only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from launchyard.errors import UserError
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.backends.base import load_backend, owner_alive
from launchyard.launcher.format import first_line
from launchyard.run import layout
from launchyard.run.lease import heartbeat_age
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.run.tail import Tail
from launchyard.storage.redact import redact

FOLLOW_SECONDS = 0.3
QUEUE_SECONDS = 2.0


def log_names(run: RunDir, attempt: int, rank: int | None) -> dict[str, str]:
    """Origin -> file of an attempt's logs: torchrun's of each node first, then the ranks in order."""
    folder = layout.logs_folder(attempt)
    found = []
    for name in run.listdir(folder):
        origin = layout.log_origin(name)
        if origin is not None and (rank is None or origin == ("rank", rank)):
            found.append((*origin, f"{folder}/{name}"))
    return {f"{kind} {number}": path for kind, number, path in sorted(found)}


def pick_attempt(run: RunDir, attempt: int | None) -> int:
    """The attempt asked for, or the newest; UserError if there is none."""
    attempts = run.attempts()
    if not attempts:
        job = newest_job(run)
        hint = "launch resume starts it" if job is None else "launch status: why it waits; launch why: what ended it"
        raise UserError(f"{run.url}: nothing has been started yet, so there are no logs", hint=hint)
    if attempt is None:
        return attempts[-1]
    if attempt not in attempts:
        raise UserError(f"--attempt {attempt}: this run has the attempts {attempts[0]} to {attempts[-1]}")
    return attempt


def print_logs(
    run: RunDir, *, attempt: int, rank: int | None, write_line: Callable[[str], None], last: int | None = None
) -> None:
    """Prints all logs, or the `last` lines of each, the first error first. UserError if that rank has no log."""
    names = log_names(run, attempt, rank)
    if rank is not None and not names:
        known = ", ".join(origin.removeprefix("rank ") for origin in log_names(run, attempt, None) if "rank" in origin)
        raise UserError(f"--rank {rank}: no log of it in attempt {attempt}; there are ranks: {known or 'none'}")
    for line in _first_error(run, attempt):
        write_line(line)
    width = max((len(origin) for origin in names), default=0)
    for origin, name in names.items():
        for line in _last(Tail(run, name).rest(), last):
            write_line(f"{origin:<{width}} | {line}")


def _first_error(run: RunDir, attempt: int) -> Iterator[str]:
    errors = run.errors(attempt)
    if errors:
        first = errors[0]
        message = first_line(str(first.get("message", "")))
        yield f"first error | rank {first.get('rank')}: {first.get('type')}: {message}"


def _last(lines: list[str], count: int | None) -> list[str]:
    return lines if count is None else lines[-count:]


def follow_logs(
    run: RunDir,
    *,
    attempt: int | None,
    rank: int | None,
    write_line: Callable[[str], None],
    last: int | None = None,
) -> None:
    """Print lines as they come, until the run ends (or that attempt does); newer attempts are taken up.

    Of the lines that are there already, the `last` of each log.
    """
    if attempt is None and newest_job(run) is not None:
        _await_start(run, write_line)
    fixed = attempt
    current = pick_attempt(run, attempt)
    tails: dict[str, Tail] = {}
    while True:
        over = _is_over(run, current if fixed is not None else None)
        for origin, name in log_names(run, current, rank).items():
            tail = tails.setdefault(name, Tail(run, name))
            for line in _last(tail.rest() if over else tail.lines(), last):
                write_line(f"{origin} | {line}")
        last = None
        newest = run.attempts()[-1]
        if fixed is None and newest != current:
            write_line(f"--- attempt {newest} ---")
            current = newest
        elif over:
            return
        else:
            time.sleep(FOLLOW_SECONDS)


def _await_start(run: RunDir, write_line: Callable[[str], None]) -> None:
    """Waits until a queued job has begun, or is gone."""
    from launchyard.launcher.runs.state import state_of

    shown = ""
    while not run.attempts() and (state := state_of(run)).alive:
        if state.queue and state.queue != shown:
            shown = state.queue
            write_line(f"job {state.job_id} waits: {shown}")
        time.sleep(QUEUE_SECONDS)


def _is_over(run: RunDir, attempt: int | None) -> bool:
    if attempt is not None and run.outcome(attempt) is not None:
        return True
    job = newest_job(run)
    if (
        job is not None
        and load_backend(job.backend).TRAITS.scheduled
        and run.outcome() is None
        and heartbeat_age(run, job.attempt) < 30.0
    ):
        return False  # a scheduler is not asked for every line
    return not owner_alive(run, job)


def log_of(run: RunDir, record: OutcomeRecord) -> str:
    """The log that holds the cause of an end."""
    folder = layout.logs_folder(record.attempt)
    name = layout.rank_log(record.rank) if record.rank is not None else layout.node_log(0)
    return redact(run.path(folder, name if run.exists(f"{folder}/{name}") else ""))
