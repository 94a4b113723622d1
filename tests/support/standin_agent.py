"""The agent and its worker in one small process, without torchrun: for tests of those who start agents.

Takes an agent's own words, hears signals and the run directory as one does, and works as standin_worker does.
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
from types import SimpleNamespace

from standin_worker import lead

from launchyard.launcher.agent.signals import CANCELLED
from launchyard.run.rundir import RunDir


def main() -> int:
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
