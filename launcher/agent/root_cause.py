"""The cause of the end of an attempt without an outcome: the first over all ranks. Reads errors and logs only."""

from __future__ import annotations

import re
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from launchyard.launcher.agent.hang_detector import HUNG
from launchyard.launcher.format import first_line
from launchyard.run import layout
from launchyard.run.rundir import RunDir

OTHER_CODE = "other code"
OWN_CODE = "own code"
# Signals that a worker dies of. torchrun itself sends TERM, then KILL, but only after the first failure.
_DEADLY = {signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
_REASONS = {
    HUNG: "hung",
    "NonFiniteError": "non-finite",
    "UnstableError": "unstable",
    "NoValidCheckpointError": "no checkpoint",
    "FencedError": "fenced",
    "OtherCodeError": OTHER_CODE,
    "OwnCodeError": OWN_CODE,
}
_FAILURE = re.compile(r"rank\s*:\s*(\d+)\s*\(local_rank.*?\n\s*exitcode\s*:\s*(-?\d+)", re.DOTALL)
# Messages of gloo, NCCL and TCPStore in a rank whose peer has gone: an effect, and hardly ever the cause.
_LOST_PEER = re.compile(
    r"connection (reset|closed|refused)|broken pipe|socket (closed|error)|remote process exited|recvValue failed|"
    r"sendBytes failed|failed to recv",
    re.IGNORECASE,
)
LOST_PEER = "peer lost"
NO_OUTCOME = "no outcome"
_LOG_TAIL = 40_000
_READERS = 16


@dataclass(frozen=True)
class Cause:
    """`reason` is a word or two, `message` one line for people."""

    reason: str
    message: str
    fatal: bool = False
    rank: int | None = None
    step: int | None = None


def find_cause(run: RunDir, attempt: int, *, node_rank: int = 0, exit_code: int | None = None) -> Cause:
    """The first cause. A rank that was killed, on any node, comes before the errors of those that lost it.

    exit_code: torchrun's on that node, negative for a signal; only used where the run directory has no error.
    """
    errors = sorted(run.errors(attempt), key=_is_effect)
    if errors and errors[0].get("type") == HUNG:  # its processes were killed for that
        return _from_error(errors[0])
    reported = {int(error.get("rank", -1)) for error in errors}
    log = node_log(run, attempt, node_rank)
    for rank, code in _failures(log) + [failure for other in _other_logs(run, attempt, node_rank) for failure in other]:
        if -code in _DEADLY and rank not in reported:
            return _killed(f"rank {rank} was", -code, rank)
    if errors:
        return _from_error(errors[0])
    if exit_code is not None and exit_code < 0:
        return _killed("torchrun was", -exit_code, None)
    detail = last_error_line(log)
    return Cause(NO_OUTCOME, f"torchrun ended (exit code {exit_code}) and no worker left an error" + detail)


def _is_effect(error: dict[str, Any]) -> bool:
    """Returns True for the error of a rank that lost another one."""
    return error.get("type") != HUNG and bool(_LOST_PEER.search(str(error.get("message", ""))))


def _other_logs(run: RunDir, attempt: int, node_rank: int) -> list[list[tuple[int, int]]]:
    """Failures that torchrun saw on the other nodes, as far as their logs are here."""
    origins = [layout.log_origin(name) for name in run.listdir(layout.logs_folder(attempt))]
    ranks = {origin[1] for origin in origins if origin is not None and origin[0] == "node"} - {node_rank}
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda rank: _failures(node_log(run, attempt, rank)), sorted(ranks)))


def node_log(run: RunDir, attempt: int, node_rank: int) -> str:
    """The end of torchrun's output on a node; empty if there is none."""
    raw = run.read_log(f"{layout.logs_folder(attempt)}/{layout.node_log(node_rank)}")
    return raw[-_LOG_TAIL:].decode(errors="replace")


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _failures(log: str) -> list[tuple[int, int]]:
    """(rank, exit code) of each failure that torchrun saw, its "first observed failure" first."""
    head, found, root = log.rpartition("Root Cause (first observed failure)")
    root_failures = _FAILURE.findall(root) if found else []
    others = _FAILURE.findall(head)
    return [(int(rank), int(code)) for rank, code in [*root_failures, *others]]


def _killed(subject: str, number: int, rank: int | None) -> Cause:
    message = f"{subject} killed by signal {number} ({signal_name(number)})"
    if number == signal.SIGKILL:
        message += "; if no user did that, the machine may have run out of memory"
    return Cause("killed", message, rank=rank)


def _from_error(error: dict[str, Any]) -> Cause:
    kind = str(error.get("type", "Error"))
    rank = error.get("rank")
    prefix = f"rank {rank} is hung" if kind == HUNG else f"rank {rank}: {kind}"
    reason = LOST_PEER if _is_effect(error) else _REASONS.get(kind, "error")
    if reason == LOST_PEER:
        prefix = f"rank {rank} lost another rank, which left no error: {kind}"
    return Cause(
        reason,
        f"{prefix}: {first_line(str(error.get('message', '')))}",
        fatal=bool(error.get("fatal", False)),
        rank=error.get("rank"),
        step=error.get("step"),
    )


def last_error_line(log: str) -> str:
    """`: ` and the last error of a log, or its last line; empty if there is none."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line) or "No module named" in line]
    found = errors[-1:] or lines[-1:]
    return f": {first_line(found[0])}" if found else ""
