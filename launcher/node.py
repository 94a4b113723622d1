"""The agent on each node: starts torchrun, passes stop requests on to its workers, and reads how the attempt ended.

Signals only set a flag here; everything else is polled. Knows no policy and no scheduler. The result of an attempt is
a file that rank 0 writes: torchrun loses exit codes. `python -m launcher.node RUN_URL …` is one node of one attempt.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from launcher.cause import LOST_PEER, Cause, find_cause, node_log
from launcher.errand import Errand
from launcher.hang import Hang
from launcher.processes import (
    MARK_ATTEMPT,
    MARK_NODE,
    MARK_RUN,
    children,
    end_child,
    end_marked,
    free_port,
    start_shielded,
)
from launcher.torchrun import torchrun_argv
from launcher.upload import LogUpload
from model import files
from model.store import StoreError
from training.rundir import OutcomeRecord, RunDir

EXIT_COMPLETED, EXIT_FAILED, EXIT_STOPPED, EXIT_FATAL = 0, 1, 75, 78
CANCELLED = "cancelled"

POLL_SECONDS = 0.1
STOP_POLL_SECONDS = {True: 0.3, False: 3.0}  # local run directory, remote one
GRACE_SECONDS = 600.0  # from a stop request to the end of an agreed save
LINGER_SECONDS = 30.0  # from the outcome to the end of torchrun
TROUBLE_SECONDS = 5.0  # of a store that are worth a word
STOPPING_SECONDS = 5.0  # patience with a store, once a signal has asked this process to end
SURVIVOR_SECONDS = 6.0  # from the death of one worker to the end of those that it leaves waiting
OTHERS_SECONDS = 4.0  # from the end of our torchrun, in which that of another node says how its workers ended
_PORT_TAKEN = ("EADDRINUSE", "address already in use", "RendezvousConnectionError")
_PORT_TRIES = 3
_MARKS = {MARK_RUN, MARK_ATTEMPT, MARK_NODE, "LAUNCHYARD_SCRATCH", "LAUNCHYARD_AGENT_PID", "LAUNCHYARD_JOB_END",
          "LAUNCHYARD_GRACE"}  # fmt: skip


class Signals:
    """What signals have asked of this process. The handlers only set what others look at."""

    def __init__(self, *, term_is_notice: bool = False) -> None:
        """`term_is_notice`: the scheduler says TERM to take the node away, not to end the run."""
        self.stop: str | None = None
        self.preempted = False
        self._notices = {signal.SIGUSR1, signal.SIGUSR2} | ({signal.SIGTERM} if term_is_notice else set())
        self._reasons = {signal.SIGTERM: "terminated", signal.SIGINT: "stop"}

    def install(self) -> None:
        for number in self._reasons:
            signal.signal(number, self._on_stop)
        for number in self._notices:
            signal.signal(number, self._on_notice)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_stop(self, number: int, frame: Any) -> None:
        self.stop = self.stop or self._reasons[signal.Signals(number)]
        files.set_patience(min(STOPPING_SECONDS, files.current_patience()))  # no scheduler waits as long as a run would

    def _on_notice(self, number: int, frame: Any) -> None:
        self.preempted = True

    def reason(self) -> str | None:
        return self.stop or ("preempted" if self.preempted else None)


@dataclass(frozen=True)
class Node:
    """One node's part of one attempt. `rdzv_endpoint` None: a free port of this machine, for a single node."""

    run: RunDir
    attempt: int
    nproc_per_node: int
    device: Literal["cpu", "cuda"]
    nnodes: int = 1
    node_rank: int = 0
    rdzv_endpoint: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    job_end: float | None = None
    grace_seconds: float = GRACE_SECONDS
    worker_module: str = "training.worker"


def run_attempt(
    run: RunDir,
    *,
    attempt: int,
    nproc_per_node: int,
    device: Literal["cpu", "cuda"],
    nnodes: int = 1,
    node_rank: int = 0,
    rdzv_endpoint: str | None = None,
    env: dict[str, str] | None = None,
    signals: Signals | None = None,
    on_poll: Callable[[], None] = lambda: None,
    job_end: float | None = None,
    grace_seconds: float = GRACE_SECONDS,
    worker_module: str = "training.worker",
) -> OutcomeRecord:
    """Run one node of one attempt to its end; nothing of it is left running, however it ends.

    Returns how the attempt ended; node 0 also writes that where the workers could not. `on_poll` is called about ten
    times a second. Call it from the main thread: the children die with the thread that started them.
    """
    if nnodes > 1 and rdzv_endpoint is None:
        raise ValueError(f"{nnodes} nodes need a rdzv_endpoint (host:port) that all of them can reach")
    node = Node(
        run, attempt, nproc_per_node, device, nnodes, node_rank, rdzv_endpoint, env or {}, job_end, grace_seconds,
        worker_module,
    )  # fmt: skip
    scratch = _make_scratch(node)
    watch = Watch(node, signals or Signals(), scratch, on_poll)
    code: int | None = None
    try:
        for _ in range(_PORT_TRIES):
            code = _run_torchrun(node, scratch, watch)
            if code in (None, 0) or not _port_was_taken(node):
                break
    finally:
        end_marked(run.url, attempt=attempt, node_rank=node_rank)
        watch.keep_logs()
        shutil.rmtree(scratch, ignore_errors=True)
    return _conclude(node, watch, code)


class Watch:
    """Looks after one torchrun: passes requests on, and says when its time is over."""

    def __init__(self, node: Node, signals: Signals, scratch: str, on_poll: Callable[[], None]) -> None:
        self._node, self._signals, self._scratch, self._on_poll = node, signals, scratch, on_poll
        self._stop_poll = Errand(node.run, self._read_request, every=STOP_POLL_SECONDS[node.run.local])
        self._logs = LogUpload(node.run, node.attempt, scratch)
        self._request: str | None = None
        self._outcome_at: float | None = None
        self._survivors = Survivors(node)
        self._hang = Hang(node.run, node.attempt, node.node_rank, node.nnodes, scratch)
        self.hung = False
        self.reason: str | None = None
        self._asked_at = 0.0
        self._fails_since: float | None = None
        self._said = False

    def look(self, torchrun: int) -> bool:
        """One round; False when torchrun must be ended."""
        self._on_poll()
        self._logs.poll()
        self._stop_poll.poll()
        self._say_trouble()
        if self._outcome_at is None:
            self._survivors.look(torchrun)
            if self._hang.look():
                self.hung = True
                say(f"{self._hang.found}; attempt {self._node.attempt} is ended")
                return False
        reason = self._signals.reason() or self._request
        if reason is not None and self.reason is None:
            self.reason, self._asked_at = reason, time.monotonic()
            _write_stop(self._scratch, reason)
        if self._request == CANCELLED:
            self.reason = CANCELLED
            return False
        if self.reason is not None and time.monotonic() - self._asked_at > self._node.grace_seconds:
            return False
        return not self._is_over(torchrun)

    def _read_request(self) -> None:
        request = self._node.run.stop_requested()
        self._request = str(request.get("reason", "stop")) if request else None
        if self._request is None and self._node.rdzv_endpoint is not None:  # a scheduler's node
            self._request = self._node.run.notice(self._node.attempt)

    def _say_trouble(self) -> None:
        """Once when the run directory cannot be reached for a while, and once when it can again."""
        failure, now = self._stop_poll.failure, time.monotonic()
        if failure is None:
            if self._said:
                say("store answers again")
            self._fails_since, self._said = None, False
        elif self._fails_since is None:
            self._fails_since = now
        elif not self._said and now - self._fails_since > TROUBLE_SECONDS:
            self._said = True
            say(f"store trouble: {failure}. The workers go on; a signal can stop them")

    def keep_logs(self) -> None:
        """What is left of them; without it the attempt has ended all the same."""
        try:
            self._logs.finish()
        except OSError as error:
            say(f"the logs of attempt {self._node.attempt} could not be kept: {error}")

    def _is_over(self, torchrun: int) -> bool:
        """All is said, and torchrun has no worker left, or does not end. On one node nothing else needs it."""
        if self._outcome_at is None:
            if self._node.run.local and self._node.run.exists(_outcome_name(self._node)):
                self._outcome_at = time.monotonic()
            return False
        if self._node.nnodes == 1 and not children(torchrun):
            return True
        return time.monotonic() - self._outcome_at > LINGER_SECONDS


def say(text: str) -> None:
    """To this process's own log, with the time."""
    with contextlib.suppress(OSError):  # a full disk
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Survivors:
    """Workers that wait for one that has died. torchrun gives them 30 s after its TERM, which is long (torch 2.13)."""

    def __init__(self, node: Node) -> None:
        self._node, self._looked = node, 0.0
        self._short_since: float | None = None

    def look(self, torchrun: int) -> None:
        """End them in time, so that torchrun says who failed first and ends. No worker leaves before the outcome."""
        now = time.monotonic()
        if self._node.nproc_per_node == 1 or now - self._looked < 1.0:
            return
        self._looked = now
        alive = children(torchrun)  # torchrun starts all workers at once: some and not all means that one is dead
        if not alive or len(alive) >= self._node.nproc_per_node:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = now
        elif now - self._short_since > SURVIVOR_SECONDS:
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _run_torchrun(node: Node, scratch: str, watch: Watch) -> int | None:
    """Start torchrun and look after it until it has ended; its exit code, negative for a signal."""
    endpoint = node.rdzv_endpoint or f"127.0.0.1:{free_port()}"
    argv = torchrun_argv(
        python=sys.executable,
        nnodes=node.nnodes,
        node_rank=node.node_rank,
        nproc_per_node=node.nproc_per_node,
        rdzv_endpoint=endpoint,
        rdzv_id=_rdzv_id(node),
        module=node.worker_module,
        args=[node.run.url],
        shutdown_timeout=int(SURVIVOR_SECONDS),
        log_dir=os.path.join(scratch, "torchrun"),
    )
    with open(_log_path(node, scratch), "ab") as log:
        child = start_shielded(argv, env=_worker_env(node, scratch), output=log)
    try:
        while child.poll() is None and watch.look(child.pid):
            time.sleep(POLL_SECONDS)
    finally:
        code = child.poll()
        if code is None:
            end_child(child)
    return code


def own_environment() -> dict[str, str]:
    """What this process finds around it, for processes that it starts; without the marks of a run it may be part of."""
    return {key: value for key, value in os.environ.items() if key not in _MARKS}


def _worker_env(node: Node, scratch: str) -> dict[str, str]:
    """What torchrun and its workers find around them."""
    env = {**own_environment(), **node.env}
    env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // node.nproc_per_node)))
    if node.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""  # "auto" must find what was planned
    env.update(
        {
            MARK_RUN: node.run.url,
            MARK_ATTEMPT: str(node.attempt),
            MARK_NODE: str(node.node_rank),
            "LAUNCHYARD_SCRATCH": scratch,
            "LAUNCHYARD_AGENT_PID": str(os.getpid()),
            "LAUNCHYARD_GRACE": str(node.grace_seconds),
        }
    )
    if node.job_end is not None:
        env["LAUNCHYARD_JOB_END"] = str(node.job_end)
    return env


def _rdzv_id(node: Node) -> str:
    """New in each attempt, the same on all its nodes."""
    job = node.run.url if node.nnodes > 1 else f"{node.run.url} {secrets.token_hex(4)}"
    return hashlib.sha256(f"{job} {node.attempt}".encode()).hexdigest()[:16]


# -- scratch and logs ------------------------------------------------------------------------------------------------
def _make_scratch(node: Node) -> str:
    """A new folder for this attempt, 0700; what killed agents of the same run have left is removed."""
    folder = tempfile.gettempdir()
    stem = f"launchyard-{hashlib.sha256(node.run.url.encode()).hexdigest()[:12]}-{node.node_rank}-"
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name.startswith(stem):
            with contextlib.suppress(OSError):
                if os.stat(path, follow_symlinks=False).st_uid == os.getuid():
                    shutil.rmtree(path, ignore_errors=True)
    return tempfile.mkdtemp(prefix=stem)


def _write_stop(scratch: str, reason: str) -> None:
    """Ask the workers of this node to stop, with one atomic step."""
    path = os.path.join(scratch, "stop")
    with open(f"{path}.tmp", "w") as file:
        json.dump({"reason": reason, "time": time.time()}, file)
    os.replace(f"{path}.tmp", path)


def _log_path(node: Node, scratch: str) -> str:
    """Where torchrun prints: into the run directory, or beside it until the attempt ends when that is remote."""
    folder = node.run.path(node.run.attempt_dir(node.attempt), "logs") if node.run.local else scratch
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, f"node-{node.node_rank}.log")


def _port_was_taken(node: Node) -> bool:
    """Did torchrun fail to open its port, before any worker was started?"""
    if node.rdzv_endpoint is not None or node.run.exists(_outcome_name(node)) or node.run.errors(node.attempt):
        return False
    log = node_log(node.run, node.attempt, node.node_rank)
    return any(word in log[-8_000:] for word in _PORT_TAKEN) and not node.run.events(node.attempt)


# -- the end ---------------------------------------------------------------------------------------------------------
def _outcome_name(node: Node) -> str:
    return f"{node.run.attempt_dir(node.attempt)}/outcome.json"


def _conclude(node: Node, watch: Watch, code: int | None) -> OutcomeRecord:
    """What rank 0 wrote, or what is to be said in its place."""
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
    """Node 0 may still be writing."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
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
    """Where ours is that another rank is gone, its node may be about to say why: its torchrun ends like ours."""
    end = time.monotonic() + (OTHERS_SECONDS if node.nnodes > 1 and node.node_rank == 0 else 0.0)
    while True:
        cause = find_cause(node.run, node.attempt, node_rank=node.node_rank, exit_code=code)
        if cause.reason != LOST_PEER or time.monotonic() > end:
            return cause
        time.sleep(0.5 if node.run.local else 2.0)


def last_step(run: RunDir, attempt: int) -> int | None:
    """The last step that an attempt has written a row for; None if it finished none."""
    steps = [row["step"] for row in run.rows("steps") if row.get("attempt") == attempt]
    return max(steps, default=None)


def exit_code(record: OutcomeRecord) -> int:
    """What a scheduler is told: 0 completed, 75 stopped and resumable, 78 do not try again, else 1."""
    if record.outcome == "completed":
        return EXIT_COMPLETED
    if record.outcome == "stopped":
        return EXIT_STOPPED
    return EXIT_FATAL if record.fatal else EXIT_FAILED


def be_patient(run: RunDir) -> None:
    """Try for as long as the run's plan says when its store fails; this process lives and dies with the run."""
    from training.config import Storage

    files.set_patience(Storage().retry_seconds)
    with contextlib.suppress(FileNotFoundError, ValueError):
        files.set_patience(Storage.model_validate(run.read_json("plan.json").get("storage", {})).retry_seconds)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launcher.node", description="One node of one attempt of a run.")
    parser.add_argument("run_url")
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--nproc-per-node", type=int, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=int(os.environ.get("SLURM_NODEID", "0")))
    parser.add_argument("--rdzv-endpoint", help="host:port of node 0; needed for more than one node")
    parser.add_argument("--job-end", type=float, help="Unix time at which the job is ended")
    parser.add_argument("--grace-seconds", type=float, default=GRACE_SECONDS)
    parser.add_argument("--worker-module", default="training.worker", help=argparse.SUPPRESS)
    parser.add_argument("--term-is-notice", action="store_true", help="TERM means that the node is about to be taken")
    options = vars(parser.parse_args(argv[1:]))
    signals = Signals(term_is_notice=options.pop("term_is_notice"))
    signals.install()
    run = RunDir(options.pop("run_url"))
    be_patient(run)
    try:
        record = run_attempt(run, signals=signals, **options)
    except StoreError as error:
        say(f"no word about the end of attempt {options['attempt']} could be left; what was saved is there. {error}")
        return EXIT_FAILED
    say(f"attempt {record.attempt} {record.outcome} ({record.reason}): {record.message}")
    return exit_code(record)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv))
    sys.exit(EXIT_FAILED)
