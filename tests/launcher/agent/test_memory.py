"""The memory of an agent: what it keeps over attempts, and when it gives that up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from launchyard.host.environment import SLOTS
from launchyard.launcher.agent.memory import AgentMemory
from launchyard.training.checkpoint.slots import Slot, SlotEntry, SlotHeader


@pytest.fixture
def memory() -> Iterator[AgentMemory]:
    owned = AgentMemory()
    yield owned
    owned.empty()


def sealed(path: str, step: int) -> Slot:
    entry = SlotEntry(dtype="F32", shape=(4,), offsets=(0,), sizes=(4,), start=0, length=16, xxh3="0")
    slot = Slot(path)
    slot.reserve(64)
    slot.seal(SlotHeader(step=step, attempt=0, time=1.0, identity={}, train_state={}, entries={"a": entry}))
    return slot


def paths_of(memory: AgentMemory, workers: int) -> list[str]:
    return memory.begin(workers)[SLOTS].split()


def test_each_worker_has_two_slots_that_stay(memory: AgentMemory) -> None:
    paths = paths_of(memory, 2)
    assert len(set(paths)) == 4 and paths_of(memory, 2) == paths
    sealed(paths[1], 7)
    assert memory.newest_step() is None, "the other worker has none"
    sealed(paths[2], 5)
    sealed(paths[3], 4)
    assert memory.newest_step() == 5


def test_a_slot_is_there_while_its_seal_is_whole(memory: AgentMemory) -> None:
    path = paths_of(memory, 1)[0]
    slot = sealed(path, 3)
    found = slot.header()
    assert found is not None and found.step == 3
    with open(path, "r+b") as file:
        file.seek(4096 + 64 + 10)  # in the header
        file.write(b"?")
    assert slot.header() is None
    sealed(path, 4).break_seal()
    assert slot.header() is None


def test_a_state_that_nobody_gets_on_from_is_given_up(memory: AgentMemory) -> None:
    path = paths_of(memory, 1)[0]
    sealed(path, 5)
    memory.end()
    for step in (6, 6, 7, 7, 7):
        memory.begin(1)
        sealed(path, step)
        memory.end()
    assert memory.newest_step() is None
    memory.begin(1)
    memory.end()  # an attempt that found nothing has not failed at it
    memory.begin(1)
    sealed(path, 2)
    memory.end()
    assert memory.newest_step() == 2
