"""A real Ray for tests: nodes that can be drained, crashed and brought back, and nothing left when tests end."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil

from launchyard.errors import LaunchError, UserError
from launchyard.host.processes import end_all, started_at
from launchyard.launcher.sandbox.ray import host
from launchyard.launcher.sandbox.ray.host import HEAD, Settings
from launchyard.launcher.sandbox.ray.site import Site
from tests.slurm.cluster import frozen

# The name says whose it is, so that the next run can end it.
_PREFIX = "lyraytest-"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
OURS = (
    "launchyard.launcher.backends.ray.owner",
    "launchyard.launcher.backends.ray.agent",
    "launchyard.launcher.agent.start.torchrun_process",
    "launchyard.training.worker",
)


class RayCluster:
    """A site that runs."""

    def __init__(self, site: Site) -> None:
        self.site, self.nodes = site, site.nodes
        self._drained: list[tuple[str, threading.Timer]] = []

    # -- waiting -------------------------------------------------------------------------------------------------------
    @staticmethod
    def wait(done, what: str, seconds: float = 60.0):  # type: ignore[no-untyped-def]
        """Until done() is true; its value."""
        end = time.monotonic() + seconds
        while not (value := done()):
            assert time.monotonic() < end, f"not within {seconds} s: {what}"
            time.sleep(0.05)
        return value

    def wait_job(self, job: str, *states: str, seconds: float = 60.0) -> str:
        """Until a job is over, or in one of these states of Ray's."""

        def seen() -> str:
            found = self.site.dashboard.ask(job)
            over = found.state == "gone" if not states else found.scheduler_state in states
            return (found.scheduler_state or "GONE") if over else ""

        return str(self.wait(seen, f"job {job}", seconds))

    # -- nodes ---------------------------------------------------------------------------------------------------------
    def node_id(self, node: str) -> str:
        """Ray's id of a node that is alive."""
        for found in self.site.dashboard.nodes():
            if found["hostname"] == node and found["raylet"]["state"] == "ALIVE":
                return str(found["raylet"]["nodeId"])
        raise AssertionError(f"{node} is not alive")

    def drain(self, node: str, seconds: int) -> None:
        """What a cloud does that takes a node: notice with a deadline, and at the deadline the power is cut."""
        words = ["drain-node", "--node-id", self.node_id(node), "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        words += ["--reason-message", "spot", "--deadline-remaining-seconds", str(seconds)]
        done = self.site.run(*RAY, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        timer = threading.Timer(seconds, self.crash_node, [node])
        timer.daemon = True
        timer.start()
        self._drained.append((node, timer))

    def crash_node(self, node: str) -> int:
        """Everything on the node is killed at once; how many processes there were."""
        return self.site.crash(node)

    def frozen_node(self, node: str) -> AbstractContextManager[None]:
        return frozen(self.site.processes(node))

    def restart_node(self, node: str) -> None:
        self.site.start_daemon(node)

    def processes(self, node: str | None = None) -> list[psutil.Process]:
        """What of a run lives on a node, or on all."""
        return [process for process in self.site.processes(node) if _is_ours(process)]

    def settle(self) -> None:
        """As at the start: every node lives, no job and nothing of a run is left."""
        while self._drained:
            node, deadline = self._drained.pop()
            deadline.cancel()  # else it may hit the node that is started now
            deadline.join()
            self.site.crash(node)
        end_all(self.processes())
        for node in self.nodes:
            if self.site.pid(node) is not None and node not in self.site.alive():  # drained, or cut off
                self.site.crash(node)
        self.site.repair()


def _is_ours(process: psutil.Process) -> bool:
    try:
        return any(word in OURS for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@contextmanager
def running_cluster(**settings: Any) -> Iterator[RayCluster]:
    """A Ray with these settings, gone afterwards with all that ran in it."""
    _end_stale()
    me = f"{os.getpid()}-{int((started_at(os.getpid()) or 0) * 100)}"
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{me}-", dir="/tmp"))
    site = Site(folder)
    try:
        site.start(Settings(**settings))
        yield RayCluster(site)
    finally:
        site.stop()
        shutil.rmtree(folder)


def _end_stale() -> None:
    """Sites of tests that were killed."""
    for folder in Path("/tmp").glob(f"{_PREFIX}*-*-*"):
        pid, started = folder.name.removeprefix(_PREFIX).split("-")[:2]
        now = started_at(int(pid))
        if folder.stat().st_uid == os.getuid() and (now is None or int(now * 100) != int(started)):
            Site(folder).stop()
            shutil.rmtree(folder, ignore_errors=True)


def why_not() -> str | None:
    """What lacks for a Ray here; tests are skipped without it, never silently passed."""
    try:
        host.require()
    except (UserError, LaunchError) as error:
        return str(error)
    return None


__all__ = ["HEAD", "RAY", "RayCluster", "running_cluster", "why_not"]
