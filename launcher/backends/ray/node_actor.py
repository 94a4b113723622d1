"""The actor on each node of a run: starts the node's agent, a process that stays and dies with it.

Knows no run and no policy. Ray gives it the node's share of CPUs and GPUs, and with it the agent and the workers.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import Any

from launchyard.host.environment import job_environment
from launchyard.host.processes import python_argv, python_environment, start_shielded
from launchyard.launcher.agent.signals import POLL_SECONDS
from launchyard.run import own_code


class NodeActor:
    """One a node. Ray runs its methods one after another in the main thread, whose death the kernel watches."""

    def facts(self) -> dict[str, Any]:
        """Its node, and its own process."""
        import ray

        node_id = ray.get_runtime_context().get_node_id()
        return {"node_id": node_id, "host": socket.gethostname(), "pid": os.getpid()}

    def run(self, argv: list[str], env: dict[str, str]) -> int:
        """The agent to its end; its exit code. argv: without the interpreter, which is the actor's own."""
        with os.fdopen(os.dup(1), "wb", buffering=0) as output:  # Ray passes it on to the owner
            around = python_environment({**job_environment(), **env}, code=own_code.movable())
            child = start_shielded([sys.executable, *argv], env=around, output=output)
        while (code := child.poll()) is None:
            time.sleep(POLL_SECONDS)
        return code


def run_here(argv: list[str]) -> tuple[int, str]:
    """A short process on the node where this runs: exit code, and all that it has printed."""
    done = subprocess.run(
        [*python_argv(sys.executable), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout
