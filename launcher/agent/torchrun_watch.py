"""Watches one torchrun for the node's agent: forwards stop requests, and decides when to end it. Knows no policy."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from launchyard.host.processes import children
from launchyard.launcher.agent.hang_detector import Hang
from launchyard.launcher.agent.memory import AgentMemory
from launchyard.launcher.agent.profile_request import ProfileRequests
from launchyard.launcher.agent.signals import CANCELLED, Signals, log_line
from launchyard.launcher.agent.start.torchrun_process import WORKER
from launchyard.run import layout
from launchyard.run.events import STORE_ANSWERS
from launchyard.run.logs import LogUpload
from launchyard.run.records import Shape
from launchyard.run.rundir import RunDir
from launchyard.storage import local

STOP_POLL_SECONDS = {True: 0.3, False: 3.0}  # local run directory, remote one
GRACE_SECONDS = 600.0  # from a stop request to the end of an agreed save
LINGER_SECONDS = 30.0  # from the outcome to the end of torchrun
TROUBLE_SECONDS = 5.0  # of errors of a store, before they are logged
SURVIVOR_SECONDS = 6.0  # from the death of one worker to the end of those that it leaves waiting
TELL_SECONDS = 3.0  # for a torchrun whose workers are dead to tell of it, once another node has failed


class Others:
    """What the agent of a node hears of the other nodes of its attempt, from their owner. These words: it is alone."""

    def stop(self) -> str | None:
        """The reason for which all nodes are to save and leave."""
        return None

    def have_failed(self) -> bool:
        """Returns True once this node's workers would wait in vain."""
        return False

    def have_ended(self) -> bool:
        """Returns True once no other node can report anything more."""
        return False

    def hear_end(self, code: int | None) -> None:
        """They are told that torchrun is over here, and that its log and its errors are in the run directory."""


@dataclass(frozen=True)
class Node:
    """One node's part of one attempt. `rdzv_endpoint` None: a free port of this machine, for a single node."""

    run: RunDir
    attempt: int
    shape: Shape
    node_rank: int = 0
    rdzv_endpoint: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    job_end: float | None = None
    grace_seconds: float = GRACE_SECONDS
    worker_module: str = WORKER
    others: Others = field(default_factory=Others)
    memory: AgentMemory = field(default_factory=AgentMemory)


class Watch:
    """Watches one torchrun: forwards requests, and decides when it must be ended."""

    def __init__(self, node: Node, signals: Signals, scratch: str, on_poll: Callable[[], None]) -> None:
        self._node = node
        self._signals = signals
        self._scratch = scratch
        self._on_poll = on_poll
        self._stop_poll = node.run.periodic(self._read_request, every=STOP_POLL_SECONDS[node.run.local])
        self._profiles = ProfileRequests(node.run, node.attempt, scratch)
        self._logs = LogUpload(node.run, node.attempt, scratch)
        self._request: str | None = None
        self._outcome_at: float | None = None
        self._stranded = StrandedWorkers(node)
        self._hang = Hang(node.run, node.attempt, node.node_rank, node.shape.nnodes, scratch)
        self.hung = False
        self.reason: str | None = None
        self._asked_at = 0.0
        self._fails_since: float | None = None
        self._reported = False

    def poll(self, torchrun: int) -> bool:
        """One round. Returns False when torchrun must be ended."""
        self._on_poll()
        self._logs.poll()
        self._stop_poll.poll()
        self._profiles.poll()
        self._log_retries()
        if self._outcome_at is None:
            self._stranded.poll(torchrun)
            if self._hang.check():
                self.hung = True
                log_line(f"{self._hang.found}; attempt {self._node.attempt} is ended")
                return False
            if self._node.others.have_failed() and self._stranded.give_up(torchrun):
                self.reason = None  # no save will be agreed on any more
                return False
        reason = self._signals.reason() or self._request or self._node.others.stop()
        if reason is not None and self.reason is None:
            self.reason = reason
            self._asked_at = time.monotonic()
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

    def _log_retries(self) -> None:
        """Logs once when the run directory cannot be reached for a while, and once when it can again."""
        failure = self._stop_poll.failure
        now = time.monotonic()
        if failure is None:
            if self._reported:
                log_line(STORE_ANSWERS)
            self._fails_since = None
            self._reported = False
        elif self._fails_since is None:
            self._fails_since = now
        elif not self._reported and now - self._fails_since > TROUBLE_SECONDS:
            self._reported = True
            log_line(f"store trouble: {failure}. The workers go on; a signal can stop them")

    def keep_logs(self) -> None:
        """Uploads the rest of the logs; an error here does not change the end of the attempt."""
        try:
            self._logs.finish()
        except OSError as error:
            log_line(f"the logs of attempt {self._node.attempt} could not be kept: {error}")

    def _is_over(self, torchrun: int) -> bool:
        """Returns True once the outcome is there and torchrun has no worker left (on one node), or does not end."""
        if self._outcome_at is None:
            if self._node.run.local and self._node.run.exists(layout.outcome(self._node.attempt)):
                self._outcome_at = time.monotonic()
            return False
        if self._node.shape.nnodes == 1 and not workers_of(torchrun):
            return True
        return time.monotonic() - self._outcome_at > LINGER_SECONDS


class StrandedWorkers:
    """Workers that wait for one that has died. torchrun gives them 30 s after its TERM, which is long (torch 2.13)."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._checked_at = 0.0
        self._short_since: float | None = None
        self._given_up_at: float | None = None

    def give_up(self, torchrun: int) -> bool:
        """Other nodes have failed: True if torchrun is to be ended. Not where a worker here is dead, too, which may be
        the first: then torchrun is about to tell which, and only waits for the others."""
        alive = workers_of(torchrun)
        if len(alive) >= self._node.shape.nproc_per_node:
            return True
        self._given_up_at = self._given_up_at or time.monotonic()
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return time.monotonic() - self._given_up_at > TELL_SECONDS

    def poll(self, torchrun: int) -> None:
        """Kills them in time: torchrun then names the first failure and ends. No worker leaves before the outcome."""
        now = time.monotonic()
        if self._node.shape.nproc_per_node == 1 or now - self._checked_at < 1.0:
            return
        self._checked_at = now
        alive = workers_of(torchrun)  # torchrun starts all workers at once: some and not all means that one is dead
        if not alive or len(alive) >= self._node.shape.nproc_per_node:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = now
        elif now - self._short_since > SURVIVOR_SECONDS:
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def workers_of(torchrun: int) -> set[int]:
    """Returns those that live: children of the server that forks them."""
    return {worker for child in children(torchrun) for worker in children(child)}


def _write_stop(scratch: str, reason: str) -> None:
    """Asks the workers of this node to stop, in one atomic step."""
    path = os.path.join(scratch, "stop")
    local.replace_file(path, json.dumps({"reason": reason, "time": time.time()}).encode())
