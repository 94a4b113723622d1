"""The end of an attempt: the outcome that rank 0 wrote, or one composed in its place."""

from __future__ import annotations

import time
from typing import Any

from launchyard.errors import EXIT_DONE, EXIT_FAILED, EXIT_FATAL, EXIT_STOPPED
from launchyard.host.processes import wait_until
from launchyard.launcher.agent.root_cause import LOST_PEER, Cause, find_cause
from launchyard.launcher.agent.signals import CANCELLED
from launchyard.launcher.agent.torchrun_watch import Node, Watch
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.run.tail import last_rows

OTHERS_SECONDS = 4.0  # from the end of our torchrun, for that of another node to report how its workers ended


def conclude(node: Node, watch: Watch, code: int | None) -> OutcomeRecord:
    """Returns the outcome that rank 0 wrote, or one composed from errors and logs; node 0 writes that down."""
    node.others.hear_end(code)
    record = node.run.outcome(node.attempt)
    if record is None and node.node_rank != 0:
        record = _await_outcome(node)
    if record is not None:
        return record
    record = _compose(node, None if watch.hung else watch.reason, code)
    if node.node_rank == 0:
        node.run.write_outcome(record)
    return record


def _await_outcome(node: Node, seconds: float = 5.0) -> OutcomeRecord | None:
    """Waits for node 0, which may still be writing; not where an owner hears of it, who alone needs it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not node.others.have_ended():
        if (record := node.run.outcome(node.attempt)) is not None:
            return record
        time.sleep(0.2)
    return None


def _compose(node: Node, reason: str | None, code: int | None) -> OutcomeRecord:
    facts: dict[str, Any] = {"attempt": node.attempt, "time": time.time(), "step": last_step(node.run, node.attempt)}
    if reason == CANCELLED:
        return OutcomeRecord(outcome="stopped", reason=CANCELLED, message="cancelled, nothing was saved", **facts)
    if reason is not None and code is None:
        late = f"asked to stop ({reason}), and the save was not done after {node.grace_seconds:.0f} s"
        if reason in ("preempted", "time limit"):
            return OutcomeRecord(outcome="failed", reason="not saved", message=late, **facts)
        return OutcomeRecord(outcome="stopped", reason=reason, message=late, **facts)
    cause = _first_cause(node, code)
    facts["step"] = facts["step"] if cause.step is None else cause.step
    return OutcomeRecord(
        outcome="failed", reason=cause.reason, message=cause.message, fatal=cause.fatal, rank=cause.rank, **facts
    )


def _first_cause(node: Node, code: int | None) -> Cause:
    """Waits, if our cause is only a lost peer, for its node to report why: its torchrun ends like ours."""
    end = time.monotonic() + (OTHERS_SECONDS if node.shape.nnodes > 1 and node.node_rank == 0 else 0.0)
    while True:
        all_told = node.others.have_ended()  # asked first: what they have told is read after that
        cause = find_cause(node.run, node.attempt, node_rank=node.node_rank, exit_code=code)
        if cause.reason != LOST_PEER or all_told or time.monotonic() > end:
            return cause
        wait_until(node.others.have_ended, seconds=0.5 if node.run.local else 2.0)


def last_step(run: RunDir, attempt: int) -> int | None:
    """The last step that an attempt has written a row for; None if it finished none."""
    rows = last_rows(run, [attempt])
    return int(rows[-1]["step"]) if rows else None


def exit_code(record: OutcomeRecord) -> int:
    """Returns the exit code for the scheduler: 0 completed, 75 stopped and resumable, 78 do not try again, else 1."""
    if record.outcome == "completed":
        return EXIT_DONE
    if record.outcome == "stopped":
        return EXIT_STOPPED
    return EXIT_FATAL if record.fatal else EXIT_FAILED
