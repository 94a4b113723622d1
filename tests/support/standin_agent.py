"""The agent and its worker in one small process, without torchrun: for tests of those who start agents.

The real process of a node, connection and all, which hears signals, its owner and the run directory, and works as
standin_worker does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

from standin_worker import lead

from launchyard.launcher.agent.conclusion import conclude
from launchyard.launcher.agent.fleet import stays
from launchyard.launcher.agent.memory import AgentMemory
from launchyard.launcher.agent.signals import CANCELLED, Signals
from launchyard.launcher.agent.torchrun_watch import Node
from launchyard.launcher.backends.ray import agent as ray_agent
from launchyard.launcher.backends.slurm import agent as slurm_agent
from launchyard.run.records import OutcomeRecord


class Standin:
    """In place of Agent. Hears signals, the owner and the run directory as one does."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self.memory = AgentMemory()  # of which nothing is used

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
    stays.Agent = Standin  # type: ignore[assignment,misc]
    on_ray = any(word.startswith("--place=") for word in sys.argv)
    return ray_agent.main(sys.argv) if on_ray else slurm_agent.main(sys.argv)


def ask(scratch: str, reason: str) -> None:
    fresh = os.path.join(scratch, f"stop.{threading.get_ident()}")
    with contextlib.suppress(FileNotFoundError):  # it is leaving already
        with open(fresh, "w") as file:
            json.dump({"reason": reason}, file)
        os.replace(fresh, os.path.join(scratch, "stop"))


if __name__ == "__main__":
    sys.exit(main())
