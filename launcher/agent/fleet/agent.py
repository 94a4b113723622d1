"""The agent of a node, for as long as the run has the node: it runs this node's part of one attempt after another.

What attempts leave for the next one belongs to it: the workers' state in memory, and a torchrun that is warm. Knows no
policy, no scheduler and no connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from launchyard.launcher.agent.memory import AgentMemory
from launchyard.launcher.agent.node import run_attempt
from launchyard.launcher.agent.signals import Signals
from launchyard.launcher.agent.start.standby import Standby
from launchyard.launcher.agent.torchrun_watch import Node
from launchyard.run.records import OutcomeRecord


class Agent:
    """Use it from the main thread, whose children die with it."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self.memory = AgentMemory()
        self._standby = Standby()

    def run(self, node: Node, *, on_poll: Callable[[], None] = lambda: None) -> OutcomeRecord:
        """One node of one attempt to its end; nothing that works at it is left."""
        kept = replace(node, memory=self.memory)
        return run_attempt(kept, signals=self._signals, on_poll=on_poll, standby=self._standby)

    def newest_step(self) -> int | None:
        """The newest step that all workers of this node have left in memory."""
        return self.memory.newest_step()

    def close(self) -> None:
        """The run leaves this node."""
        self._standby.close()
