"""This machine: a detached process that owns the run, starts one attempt after another, and writes its outcome.

The process of this file is that owner; its first argument is the URL of the run. It outlives the terminal; all that
it has started dies with it. TERM: agreed save, then stop. USR1: agreed save, then another attempt.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import stat
import sys
from collections.abc import Callable
from typing import Any

from launchyard.errors import EXIT_USER, LaunchError, UserError
from launchyard.host.devices import DEVICES
from launchyard.launcher.agent.conclusion import exit_code
from launchyard.launcher.agent.fleet.agent import Agent
from launchyard.launcher.agent.node import adopt_retry_budget
from launchyard.launcher.agent.owner import Owner, record_own_failure
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.agent.signals import Signals, log_line
from launchyard.launcher.agent.start.torchrun_process import WORKER
from launchyard.launcher.agent.torchrun_watch import Node
from launchyard.launcher.backends.base import judge_job
from launchyard.run.records import Job, OutcomeRecord, Shape
from launchyard.run.rundir import RunDir


def make_owner(run: RunDir, shape: Shape, request: dict[str, Any], agent: Agent, signals: Signals) -> Owner:
    """`request`: from the launcher, with overrides and worker_module. The owner's process is the agent's, too."""

    def run_nodes(job: Job, on_poll: Callable[[], None]) -> OutcomeRecord:
        node = Node(run, job.attempt, job.shape, worker_module=request["worker_module"])
        return agent.run(node, on_poll=on_poll)

    owner = Owner(run, "local", str(os.getpid()), shape, request["overrides"], signals, run_nodes, judge_job)
    owner.kept_step = agent.newest_step
    return owner


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__name__}", description="Owns a run on this machine.")
    parser.add_argument("run_url")
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--nproc-per-node", type=int, required=True)
    parser.add_argument("--device", choices=DEVICES, required=True)
    options = vars(parser.parse_args(argv[1:]))
    run = RunDir(options.pop("run_url"))
    adopt_retry_budget(run)
    signals = Signals()
    signals.install()
    reply = _launcher_socket()
    agent = Agent(signals)
    owner = make_owner(run, Shape(**options), _read_request(reply, run), agent, signals)
    try:
        job = owner.claim()
    except (LaunchError, OSError) as error:  # also a full disk, or a store that refuses
        _answer(reply, {"error": str(error), "hint": getattr(error, "hint", None)})
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    log_line(f"process {os.getpid()} owns attempt {job.attempt}")
    _answer(reply, {"job": job.model_dump(mode="json")})
    try:
        return exit_code(owner.own(job))
    except UserError as error:  # another job has the run now: we write no outcome
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except Exception as error:
        record_own_failure(run, job, error)
        return 1
    finally:
        agent.close()


def _launcher_socket() -> socket.socket | None:
    """The socket to the process that submitted us; None when we were started by hand."""
    return socket.socket(fileno=os.dup(0)) if stat.S_ISSOCK(os.fstat(0).st_mode) else None


def _read_request(reply: socket.socket | None, run: RunDir) -> dict[str, Any]:
    """Overrides come through the socket, never in argv; by hand they are those of the attempt before."""
    if reply is None:
        job = newest_job(run)
        return {"overrides": job.overrides if job else {}, "worker_module": WORKER}
    raw = b""
    while part := reply.recv(65536):
        raw += part
    return dict(json.loads(raw))


def _answer(reply: socket.socket | None, answer: dict[str, Any]) -> None:
    """Answers the launcher once, then closes its socket."""
    if reply is None:
        return
    with reply, contextlib.suppress(OSError):
        reply.sendall(json.dumps(answer).encode())
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
