"""What ended an attempt that left no outcome: the first cause over all ranks. Reads errors and logs only."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import Any

from launcher.hang import HUNG
from training.rundir import RunDir

# Signals that a worker dies of. torchrun itself sends TERM, then KILL, but only after the first failure.
_DEADLY = {signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
_REASONS = {
    HUNG: "hung",
    "NonFiniteError": "non-finite",
    "NoValidCheckpointError": "no checkpoint",
    "FencedError": "fenced",
}
_FAILURE = re.compile(r"rank\s*:\s*(\d+)\s*\(local_rank.*?\n\s*exitcode\s*:\s*(-?\d+)", re.DOTALL)
_LOG_TAIL = 40_000


@dataclass(frozen=True)
class Cause:
    """`reason` is a word or two, `message` one line for people."""

    reason: str
    message: str
    fatal: bool = False
    rank: int | None = None
    step: int | None = None


def find_cause(run: RunDir, attempt: int, *, node_rank: int = 0, exit_code: int | None = None) -> Cause:
    """The first cause. A rank that was killed comes before the errors of those that lost it.

    exit_code: torchrun's, negative for a signal; only used where the run directory tells nothing.
    """
    errors = run.errors(attempt)
    log = node_log(run, attempt, node_rank)
    spoke = {int(error.get("rank", -1)) for error in errors}
    for rank, code in _failures(log):
        if -code in _DEADLY and rank not in spoke:
            return _killed(f"rank {rank} was", -code, rank)
    if errors:
        return _from_error(errors[0])
    if exit_code is not None and exit_code < 0:
        return _killed("torchrun was", -exit_code, None)
    said = last_words(log)
    return Cause("no outcome", f"torchrun ended (exit code {exit_code}) and no worker left a word" + said)


def node_log(run: RunDir, attempt: int, node_rank: int) -> str:
    """The end of what torchrun printed on a node; empty if there is nothing."""
    raw = run.read_log(f"{run.attempt_dir(attempt)}/logs/node-{node_rank}.log")
    return raw[-_LOG_TAIL:].decode(errors="replace")


def first_line(text: str, limit: int = 400) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _failures(log: str) -> list[tuple[int, int]]:
    """(rank, exit code) of what torchrun saw fail, its "first observed failure" first."""
    head, found, root = log.rpartition("Root Cause (first observed failure)")
    root_failures = _FAILURE.findall(root) if found else []
    others = _FAILURE.findall(head)
    return [(int(rank), int(code)) for rank, code in [*root_failures, *others]]


def _killed(who: str, number: int, rank: int | None) -> Cause:
    message = f"{who} killed by signal {number} ({signal_name(number)})"
    if number == signal.SIGKILL:
        message += "; if nobody did that, the machine may have run out of memory"
    return Cause("killed", message, rank=rank)


def _from_error(error: dict[str, Any]) -> Cause:
    kind, rank = str(error.get("type", "Error")), error.get("rank")
    said = f"rank {rank} is hung" if kind == HUNG else f"rank {rank}: {kind}"
    return Cause(
        _REASONS.get(kind, "error"),
        f"{said}: {first_line(str(error.get('message', '')))}",
        fatal=bool(error.get("fatal", False)),
        rank=error.get("rank"),
        step=error.get("step"),
    )


def last_words(log: str) -> str:
    """`: ` and the last error of a log, or its last line; empty if there is none."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line) or "No module named" in line]
    found = errors[-1:] or lines[-1:]
    return f": {first_line(found[0])}" if found else ""
