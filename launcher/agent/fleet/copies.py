"""Copies of other nodes' slots in the memory of this one: of each node the two newest states that are whole.

Knows no connection: who fills a state says when it is whole. What another shape of the run has left is dropped.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from launchyard.launcher.agent.fleet.wire import NodeState
from launchyard.launcher.agent.memory import make_slot
from launchyard.run.records import Shape
from launchyard.training.checkpoint.slots import NODE_SHARE, Slot, sealed_bytes


@dataclass
class Copy:
    """Slots for the workers of a node. `state`: what they hold, once that is whole; `attempt`: in which it came."""

    slots: list[Slot] = field(default_factory=list)
    state: NodeState | None = None
    attempt: int = 0


class Copies:
    """`lock`: who fills or reads the copies of a node holds it, of that node."""

    def __init__(self) -> None:
        self._shape: Shape | None = None
        self._pairs: dict[int, list[Copy]] = {}
        self._locks: dict[int, threading.Lock] = {}

    def begin(self, shape: Shape, attempt: int) -> None:
        """An attempt of that shape begins here."""
        if self._shape is not None and self._shape != shape:
            for node_rank, pair in list(self._pairs.items()):
                with self.lock(node_rank):
                    _drop(copy for copy in pair if copy.attempt < attempt)
        self._shape = shape

    def lock(self, node_rank: int) -> threading.Lock:
        return self._locks.setdefault(node_rank, threading.Lock())

    def steps(self) -> dict[int, tuple[int, ...]]:
        """By node."""
        found = {
            node_rank: tuple(sorted(copy.state.step for copy in pair if copy.state is not None))
            for node_rank, pair in list(self._pairs.items())
        }
        return {node_rank: steps for node_rank, steps in found.items() if steps}

    def find(self, node_rank: int, step: int) -> Copy | None:
        """The whole copy of a step."""
        pair = self._pairs.get(node_rank, [])
        return next((copy for copy in pair if copy.state is not None and copy.state.step == step), None)

    def holds(self, state: NodeState) -> bool:
        found = self.find(state.node_rank, state.step)
        return found is not None and found.state == state

    def make_room(self, state: NodeState, keep: tuple[str, ...]) -> Copy | str:
        """Where a state is to be written: not over one that its node still has. Else why there is no room for it."""
        sizes = [sealed_bytes(bytes.fromhex(seal)) for seal in state.seals]
        total = _memory()[0]
        if 2 * sum(sizes) * NODE_SHARE > total:
            return f"two copies of {sum(sizes)} bytes are more than a quarter of the {total} of this machine's memory"
        pair = self._pairs.setdefault(state.node_rank, [Copy(), Copy()])
        found = min(pair, key=lambda copy: _worth(copy, keep))
        found.state = None
        while len(found.slots) < len(state.seals):
            number = len(found.slots)
            found.slots.append(make_slot(f"copy of node {state.node_rank} worker {number}")[1])
        try:
            _reserve(found.slots, sizes)
        except OSError as error:
            return f"no memory for a copy of {sum(sizes)} bytes: {error}"
        return found

    def close(self) -> None:
        for pair in self._pairs.values():
            _drop(pair)
        self._pairs.clear()


def _drop(copies: Iterable[Copy]) -> None:
    for copy in copies:
        copy.state = None
        for slot in copy.slots:
            slot.empty()


def _reserve(slots: list[Slot], sizes: list[int]) -> None:
    """OSError where they do not fit: nothing of the node may be ended for them."""
    here = sum(os.fstat(slot.fileno()).st_size for slot in slots)
    if sum(sizes) - here > _memory()[1]:
        raise OSError("too little is free")
    for slot, size in zip(slots, sizes, strict=False):
        slot.reserve(size)


def _memory() -> tuple[int, int]:
    """Bytes of this machine: all of them, and those that are free."""
    import psutil

    found = psutil.virtual_memory()
    return int(found.total), int(found.available)


def _worth(copy: Copy, keep: tuple[str, ...]) -> tuple[bool, int]:
    state = copy.state
    return (state is not None and state.seals[0] in keep, -1 if state is None else state.step)
