"""The lease of an attempt: a heartbeat that its owner renews, and whose age distinguishes a live owner from a dead one.

The age is measured by the clock of the store or file server alone, so the clocks of machines may differ. An owner that
was wrongly taken for dead is fenced out at its next commit (training/checkpoint/commit.py)."""

from __future__ import annotations

import contextlib
import os
import socket
import time

from launchyard.run import layout
from launchyard.run.rundir import RunDir

HEARTBEAT_SECONDS = {True: 5.0, False: 10.0}  # local run directory, remote one
LEASE_SECONDS = 60.0


def heartbeat_age(run: RunDir, attempt: int) -> float:
    """Seconds since the owner of an attempt last beat, or claimed it, by the clock of where the run lies."""
    for name in (layout.heartbeat(attempt), layout.job(attempt)):
        with contextlib.suppress(FileNotFoundError):
            return run.age(name)
    return float("inf")


def last_heartbeat(run: RunDir, attempt: int) -> float:
    """Returns the time of the last heartbeat of an attempt, in seconds since the epoch; 0 if there was none."""
    try:
        return float(run.read_json(layout.heartbeat(attempt))["time"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0.0


class Heartbeat:
    """Rewrites an attempt's heartbeat.json now and then, for other hosts. `superseded`: another took over."""

    def __init__(self, run: RunDir, attempt: int) -> None:
        self._run = run
        self._attempt = attempt
        self._task = run.periodic(self._write, every=HEARTBEAT_SECONDS[run.local])
        self.superseded = False

    def beat(self) -> None:
        self._task.poll()

    def _write(self) -> None:
        facts = {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
        self._run.write_json(layout.heartbeat(self._attempt), facts)
        self.superseded = self._run.is_claimed(self._attempt + 1)
