"""The agent and its worker in one small process, without torchrun: for tests of those who start agents.

Takes an agent's own words, hears signals, its owner and the run directory as one does, and works as standin_worker
does. Without an attempt among its words it is one that stays: the real process of a node, connection and all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

from standin_worker import lead

from launchyard.launcher.agent.conclusion import conclude
from launchyard.launcher.agent.signals import CANCELLED, Signals
from launchyard.launcher.agent.torchrun_watch import Node
from launchyard.launcher.backends.slurm import agent
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir


class Standin:
    """In place of Agent. Hears signals, the owner and the run directory as one does."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def newest_step(self) -> int | None:
        return None

    def run(self, node: Node, *, on_poll: Callable[[], None]) -> OutcomeRecord:
        plan = json.loads(os.environ.get("LAUNCHYARD_STANDIN", "{}"))
        scratch = tempfile.mkdtemp(prefix="standin-")
        world = SimpleNamespace(attempt=node.attempt, scratch=scratch, host=socket.gethostname(), world_size=1)
        codes: list[int] = []
        work = threading.Thread(target=lambda: codes.append(lead(node.run, world, plan)), daemon=True)
        if node.node_rank == 0:
            work.start()
        try:
            while work.is_alive() or (node.node_rank != 0 and node.run.outcome(node.attempt) is None):
                on_poll()
                self._listen(node, scratch)
                time.sleep(0.02)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return conclude(node, SimpleNamespace(hung=False, reason=None), codes[0] if codes else 0)  # type: ignore[arg-type]

    def _listen(self, node: Node, scratch: str) -> None:
        request = node.run.stop_requested()
        asked = str(request["reason"]) if request else node.run.notice(node.attempt)
        reason = self._signals.reason() or asked or node.others.stop()
        if reason == CANCELLED:
            os._exit(1)
        if reason is not None:
            ask(scratch, reason)

    def close(self) -> None:
        """Nothing is left of a part."""


def main() -> int:
    if not any(word.startswith("--attempt") for word in sys.argv):
        agent.Agent = Standin  # type: ignore[assignment,misc]
        return agent.main(sys.argv)
    parser = argparse.ArgumentParser()
    parser.add_argument("run_url")
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=int(os.environ.get("SLURM_NODEID", "0")))
    options, _ = parser.parse_known_args()
    run, plan = RunDir(options.run_url), json.loads(os.environ.get("LAUNCHYARD_STANDIN", "{}"))
    scratch = tempfile.mkdtemp(prefix="standin-")

    def on_signal(number: int, frame: object) -> None:
        ask(scratch, "preempted")

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, on_signal)
    threading.Thread(target=listen, args=(run, options.attempt, scratch), daemon=True).start()
    try:
        if options.node_rank != 0:
            while run.outcome(options.attempt) is None:
                time.sleep(0.02)
            return 0
        world = SimpleNamespace(attempt=options.attempt, scratch=scratch, host=socket.gethostname(), world_size=1)
        return lead(run, world, plan)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def listen(run: RunDir, attempt: int, scratch: str) -> None:
    """What people and the owner ask through the run directory."""
    while True:
        request = run.stop_requested()
        reason = str(request["reason"]) if request else run.notice(attempt)
        if reason == CANCELLED:
            os._exit(1)
        if reason is not None:
            ask(scratch, reason)
        time.sleep(0.05)


def ask(scratch: str, reason: str) -> None:
    fresh = os.path.join(scratch, f"stop.{threading.get_ident()}")
    with contextlib.suppress(FileNotFoundError):  # it is leaving already
        with open(fresh, "w") as file:
            json.dump({"reason": reason}, file)
        os.replace(fresh, os.path.join(scratch, "stop"))


if __name__ == "__main__":
    sys.exit(main())
