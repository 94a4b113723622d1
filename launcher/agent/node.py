"""The agent on each node: starts torchrun, passes stop requests on to its workers, and reads how the attempt ended.

Signals only set a flag here; everything else is polled. Knows no policy and no scheduler. The result of an attempt is
a file that rank 0 writes: torchrun loses exit codes. Its process is one node
of one attempt.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable

from launchyard.errors import EXIT_FAILED
from launchyard.host.devices import DEVICES
from launchyard.host.environment import (
    AGENT_PID,
    GRACE,
    IMAGE,
    JOB_END,
    MARK_ATTEMPT,
    MARK_NODE,
    MARK_RUN,
    SCRATCH,
    SERVER,
    job_environment,
    variable,
)
from launchyard.host.ports import free_port
from launchyard.host.processes import end_marked, python_environment, start_shielded
from launchyard.launcher.agent.conclusion import conclude, exit_code
from launchyard.launcher.agent.root_cause import node_log
from launchyard.launcher.agent.signals import POLL_SECONDS, Signals, log_line
from launchyard.launcher.agent.start.standby import Standby
from launchyard.launcher.agent.start.started import Started, make_folder
from launchyard.launcher.agent.start.torchrun_process import WORKER
from launchyard.launcher.agent.torchrun import PROCESS, torchrun_argv
from launchyard.launcher.agent.torchrun_watch import GRACE_SECONDS, SURVIVOR_SECONDS, Node, Watch
from launchyard.run import layout, own_code
from launchyard.run.records import OutcomeRecord, Shape
from launchyard.run.rundir import RunDir
from launchyard.storage import retry
from launchyard.storage.errors import StoreError

_PORT_TAKEN = ("EADDRINUSE", "address already in use", "RendezvousConnectionError")
_PORT_TRIES = 3


def run_attempt(
    node: Node,
    *,
    signals: Signals | None = None,
    on_poll: Callable[[], None] = lambda: None,
    standby: Standby | None = None,
) -> OutcomeRecord:
    """Run one node of one attempt to its end; nothing of it is left running, however it ends.

    Returns the outcome of the attempt; node 0 also writes it where the workers could not. `on_poll` is called about ten
    times per second. `standby`: of an agent that runs the next attempt too. Call it from the main thread: the children
    die with the thread that started them.
    """
    if node.shape.nnodes > 1 and node.rdzv_endpoint is None:
        raise ValueError(f"{node.shape.nnodes} nodes need a rdzv_endpoint (host:port) that all of them can reach")
    scratch = _make_scratch(node)
    watch = Watch(node, signals or Signals(), scratch, on_poll)
    code: int | None = None
    try:
        for _ in range(_PORT_TRIES):
            code = _run_torchrun(node, scratch, watch, standby)
            if code in (None, 0) or not _port_was_taken(node):
                break
    finally:
        end_marked(node.run.url, attempt=node.attempt, node_rank=node.node_rank)
        node.memory.end()
        watch.keep_logs()
        shutil.rmtree(scratch, ignore_errors=True)
    return conclude(node, watch, code)


def _run_torchrun(node: Node, scratch: str, watch: Watch, standby: Standby | None) -> int | None:
    """Starts torchrun and watches it until it has ended. Returns its exit code, negative for a signal."""
    env = _worker_env(node, scratch)
    started = _start(node, env, _log_path(node, scratch), standby)
    child = started.child
    code: int | None = None
    try:
        while child.poll() is None and watch.poll(child.pid):
            if standby is not None:
                standby.poll(env, node.shape, node.worker_module)
            time.sleep(POLL_SECONDS)
    finally:
        code = started.end()
    return code


def _start(node: Node, env: dict[str, str], log: str, standby: Standby | None) -> Started:
    """torchrun with its workers: the one that stands by if there is one."""
    endpoint = node.rdzv_endpoint or f"127.0.0.1:{free_port()}"
    argv = torchrun_argv(
        python=sys.executable,
        nnodes=node.shape.nnodes,
        node_rank=node.node_rank,
        nproc_per_node=node.shape.nproc_per_node,
        rdzv_endpoint=endpoint,
        rdzv_id=_rdzv_id(node),
        module=node.worker_module,
        args=[node.run.url],
        shutdown_timeout=int(SURVIVOR_SECONDS),
        log_dir=os.path.join(env[SCRATCH], "torchrun"),
    )
    words = argv[argv.index(PROCESS) + 1 :]
    if standby is not None and (started := standby.take(words, env=env, log=log)) is not None:
        log_line(f"attempt {node.attempt} begins with the torchrun that stood by")
        return started
    folder = make_folder()
    with open(log, "ab") as output:
        return Started(start_shielded(argv, env={**env, SERVER: folder}, output=output), folder)


def _worker_env(node: Node, scratch: str) -> dict[str, str]:
    """The environment of torchrun and its workers."""
    env = python_environment({**job_environment(), **node.env}, code=own_code.movable())
    env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // node.shape.nproc_per_node)))
    if node.shape.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""  # "auto" must find the planned device
    env.update(
        {
            MARK_RUN: node.run.url,
            MARK_ATTEMPT: str(node.attempt),
            MARK_NODE: str(node.node_rank),
            SCRATCH: scratch,
            AGENT_PID: str(os.getpid()),
            GRACE: str(node.grace_seconds),
            **node.memory.begin(node.shape.nproc_per_node),
        }
    )
    if image := variable(IMAGE):
        env[IMAGE] = image
    if node.job_end is not None:
        env[JOB_END] = str(node.job_end)
    return env


def _rdzv_id(node: Node) -> str:
    """New in each attempt, the same on all its nodes."""
    job = node.run.url if node.shape.nnodes > 1 else f"{node.run.url} {secrets.token_hex(4)}"
    return hashlib.sha256(f"{job} {node.attempt}".encode()).hexdigest()[:16]


# -- scratch and logs ------------------------------------------------------------------------------------------------
def _make_scratch(node: Node) -> str:
    """A new folder for this attempt, 0700; removes those that killed agents of the same run have left."""
    folder = tempfile.gettempdir()
    stem = f"launchyard-{hashlib.sha256(node.run.url.encode()).hexdigest()[:12]}-{node.node_rank}-"
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name.startswith(stem):
            with contextlib.suppress(OSError):
                if os.stat(path, follow_symlinks=False).st_uid == os.getuid():
                    shutil.rmtree(path, ignore_errors=True)
    return tempfile.mkdtemp(prefix=stem)


def _log_path(node: Node, scratch: str) -> str:
    """The log of torchrun: in the run directory; if that is remote, in scratch until the attempt ends."""
    folder = node.run.path(layout.logs_folder(node.attempt)) if node.run.local else scratch
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, layout.node_log(node.node_rank))


def _port_was_taken(node: Node) -> bool:
    """Returns True if torchrun failed to open its port, before any worker was started."""
    if node.rdzv_endpoint is not None or node.run.exists(layout.outcome(node.attempt)) or node.run.errors(node.attempt):
        return False
    log = node_log(node.run, node.attempt, node.node_rank)
    return any(mark in log[-8_000:] for mark in _PORT_TAKEN) and not node.run.events(node.attempt)


def adopt_retry_budget(run: RunDir) -> None:
    """Takes the retry budget of the run's plan for this process, which lives and dies with the run."""
    from launchyard.training.spec import Storage

    retry.set_retry_budget(Storage().retry_seconds)
    with contextlib.suppress(FileNotFoundError, ValueError):
        retry.set_retry_budget(Storage.model_validate(run.read_plan().get("storage", {})).retry_seconds)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launchyard.launcher.agent.node", description="One node of one attempt of a run."
    )
    parser.add_argument("run_url")
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--nproc-per-node", type=int, required=True)
    parser.add_argument("--device", choices=DEVICES, required=True)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=int(variable("SLURM_NODEID") or "0"))
    parser.add_argument("--rdzv-endpoint", help="host:port of node 0; needed for more than one node")
    parser.add_argument("--job-end", type=float, help="Unix time at which the job is ended")
    parser.add_argument("--grace-seconds", type=float, default=GRACE_SECONDS)
    parser.add_argument("--worker-module", default=WORKER, help=argparse.SUPPRESS)
    parser.add_argument("--term-is-notice", action="store_true", help="TERM means that the node is about to be taken")
    options = vars(parser.parse_args(argv[1:]))
    signals = Signals(term_is_notice=options.pop("term_is_notice"))
    signals.install()
    shape = Shape(**{key: options.pop(key) for key in Shape.model_fields})
    node = Node(RunDir(options.pop("run_url")), shape=shape, **options)
    adopt_retry_budget(node.run)
    try:
        record = run_attempt(node, signals=signals)
    except StoreError as error:
        log_line(f"the outcome of attempt {node.attempt} could not be written; its checkpoints are intact. {error}")
        return EXIT_FAILED
    log_line(f"attempt {record.attempt} {record.outcome} ({record.reason}): {record.message}")
    return exit_code(record)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv))
    sys.exit(EXIT_FAILED)
