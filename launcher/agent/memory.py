"""The memory in which an agent keeps the state of its workers over attempts: two slots for each of them.

A slot is an anonymous file of the kernel, freed when the agent and its workers are gone. Workers open it by its path
under the agent's process. Knows what a slot says of itself, and none of its tensors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from launchyard.host.environment import SLOTS
from launchyard.training.checkpoint.slots import Slot, newest_step

FRUITLESS = 2  # attempts in a row that got no further than the slots they found: then those are emptied


class AgentMemory:
    """Lives as long as its agent. Without memfd (not Linux) there are no slots."""

    def __init__(self) -> None:
        self._slots: list[list[Slot]] = []
        self._paths: list[str] = []
        self._workers = 0  # of this attempt
        self._found: int | None = None
        self._fruitless = 0

    def begin(self, workers: int) -> dict[str, str]:
        """Called before the workers of an attempt start; the variables that tell them of their slots."""
        if not hasattr(os, "memfd_create"):
            return {}
        while len(self._slots) < workers:
            self._slots.append([self._make(f"rank {len(self._slots)} slot {number}") for number in range(2)])
        self._workers = workers
        self._found = self.newest_step()
        return {SLOTS: " ".join(self._paths[: 2 * workers])}

    def _make(self, name: str) -> Slot:
        path = f"/proc/{os.getpid()}/fd/{os.memfd_create(name)}"
        self._paths.append(path)
        return Slot(path)

    def end(self) -> None:
        """Called when no worker of the attempt is left. A state that nobody gets on from is not tried for ever."""
        newest = self.newest_step()
        advanced = newest is not None and (self._found is None or newest > self._found)
        self._fruitless = 0 if advanced or self._found is None else self._fruitless + 1
        if self._fruitless >= FRUITLESS:
            self.empty()

    def newest_step(self) -> int | None:
        """The newest step that all workers of this attempt have got to; None without one."""
        return _least([newest_step(slots) for slots in self._slots[: self._workers]])

    def empty(self) -> None:
        for slots in self._slots:
            for slot in slots:
                slot.empty()
        self._fruitless = 0


def _least(steps: Sequence[int | None]) -> int | None:
    known = [step for step in steps if step is not None]
    return min(known) if known and len(known) == len(steps) else None
