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
        self.make_room(workers)
        self._found = self.newest_step()
        return {SLOTS: " ".join(self._paths[: 2 * workers])}

    def make_room(self, workers: int) -> None:
        """There is a pair of slots for each of so many workers, which are those of an attempt from now on."""
        while len(self._slots) < workers and hasattr(os, "memfd_create"):
            made = [make_slot(f"rank {len(self._slots)} slot {number}") for number in range(2)]
            self._paths += [path for path, _ in made]
            self._slots.append([slot for _, slot in made])
        self._workers = workers

    def end(self) -> None:
        """Called when no worker of the attempt is left. A state that nobody gets on from is not tried for ever."""
        newest = self.newest_step()
        advanced = newest is not None and (self._found is None or newest > self._found)
        self._fruitless = 0 if advanced or self._found is None else self._fruitless + 1
        if self._fruitless >= FRUITLESS:
            self.empty()

    def newest_step(self) -> int | None:
        """The newest step that all workers of this attempt have got to; None without one."""
        return _least([newest_step(slots) for slots in self._of_workers()])

    def _of_workers(self) -> list[list[Slot]]:
        return self._slots[: self._workers]

    def whole_steps(self) -> list[int]:
        """Steps that all workers of this attempt have a slot of, in their order."""
        found = [{step for slot in slots if (step := slot.step()) is not None} for slots in self._of_workers()]
        return sorted(set.intersection(*found)) if found else []

    def slots_of(self, step: int) -> list[Slot]:
        """One of each worker; fewer if one of them has none any more."""
        return [slot for slots in self._of_workers() for slot in slots if slot.step() == step]

    def oldest_slots(self) -> list[Slot]:
        """Of each worker that slot which it can spare."""
        return [
            min(slots, key=lambda slot: -1 if (step := slot.step()) is None else step) for slots in self._of_workers()
        ]

    def forget_copies(self) -> None:
        """No slot counts as copied, for the copies may be gone."""
        for slots in self._of_workers():
            for slot in slots:
                slot.forget_copy()

    def await_copies(self, wanted: bool) -> None:
        """From now on workers wait with the next copy until there is another one of the last, or do not."""
        for slots in self._of_workers():
            for slot in slots:
                slot.await_copies(wanted)

    def empty(self) -> None:
        for slots in self._slots:
            for slot in slots:
                slot.empty()
        self._fruitless = 0


def make_slot(name: str) -> tuple[str, Slot]:
    """An empty one, and its path, which serves while this process lives."""
    path = f"/proc/{os.getpid()}/fd/{os.memfd_create(name)}"
    return path, Slot(path)


def _least(steps: Sequence[int | None]) -> int | None:
    known = [step for step in steps if step is not None]
    return min(known) if known and len(known) == len(steps) else None
