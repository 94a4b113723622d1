"""Copies of slots between the agents of nodes, over real sockets: whole or not there, and nobody waits in vain."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from launchyard.launcher.agent.fleet import copies as copies_module
from launchyard.launcher.agent.fleet.neighbours import Neighbours
from launchyard.launcher.agent.fleet.stream import Stream, call_keeper
from launchyard.launcher.agent.fleet.wire import CopyAnswer, CopyRequest, NodePart, NodeState
from launchyard.launcher.agent.memory import AgentMemory
from launchyard.run.records import Shape
from tests.launcher.agent.fleet.conftest import SECRET, contents_of, seal_all, wait

TWO = Shape(nnodes=2, nproc_per_node=2, device="cpu")


class Node:
    """The memory of an agent, and what it does for others."""

    def __init__(self, place: str) -> None:
        self.memory = AgentMemory()
        self.there = Neighbours(self.memory, SECRET, place=place, host="127.0.0.1")

    def begin(
        self, rank: int, buddy: str | None, *, attempt: int = 0, source: str | None = None, step: int = 0
    ) -> None:
        part = NodePart(attempt=attempt, shape=TWO, node_rank=rank, buddy=buddy, source=source, source_step=step)
        self.there.begin(part, on_poll=lambda: None)

    def make(self, step: int, *, size: int = 10_000) -> list[bytes]:
        return seal_all(self.memory, step, workers=2, size=size)

    def waits(self, step: int) -> bool:
        """Do its workers wait for the copy of a step?"""
        return any(slot.awaits_copy for slot in self.memory.slots_of(step))


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    made = [Node("one"), Node("two"), Node("new")]
    yield made
    for node in made:
        node.there.close()


def test_what_one_node_seals_is_on_the_other_and_comes_back_to_a_new_one(nodes: list[Node]) -> None:
    one, two, new = nodes
    one.begin(0, two.there.address)
    two.begin(1, None)
    left = {step: one.make(step) for step in (4, 8)}
    wait(lambda: two.there.steps().get(0, ())[-1:] == (8,))
    wait(lambda: not one.waits(8))
    new.begin(0, None, attempt=1, source=two.there.address, step=8)
    assert new.memory.whole_steps() == [8]
    assert contents_of(new.memory, 8) == left[8]
    new.begin(0, two.there.address, attempt=1)
    wait(lambda: not new.waits(8))


def test_the_copy_of_a_state_that_its_node_still_has_is_not_written_over(nodes: list[Node]) -> None:
    """So the one that all nodes have stays, whatever is made and lost after it."""
    one, two, _ = nodes
    one.begin(0, two.there.address)
    one.make(4)
    wait(lambda: two.there.steps() == {0: (4,)})
    for step in (5, 6, 7):  # each in the place of the one before it, as a checkpoint may take it
        later = [] if step == 5 else one.memory.slots_of(step - 1)
        for slot in later:
            slot.break_seal()
        one.make(step)
        assert one.memory.whole_steps() == [4, step]
        wait(lambda step=step: two.there.steps() == {0: (4, step)})


def test_what_arrives_damaged_is_no_copy(nodes: list[Node]) -> None:
    one, two, _ = nodes
    one.make(4)
    slots = one.memory.slots_of(4)
    with slots[1].memory(10_000) as memory:
        memory[77] ^= 1
    one.begin(0, two.there.address)
    wait(lambda: not one.waits(4))
    assert two.there.steps() == {}
    one.make(5)
    wait(lambda: two.there.steps() == {0: (5,)})


def test_workers_do_not_wait_for_a_neighbour_that_is_gone(nodes: list[Node]) -> None:
    one, two, _ = nodes
    one.begin(0, two.there.address)
    two.there.close()
    one.make(4)
    assert not one.waits(4) or wait(lambda: not one.waits(4))
    one.begin(0, None)
    one.make(6)
    assert not one.waits(6)


def test_a_copy_that_is_too_large_for_the_neighbour_is_refused(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(copies_module, "NODE_SHARE", 2**40)
    one, two, _ = nodes
    one.make(4)
    one.begin(0, two.there.address)
    wait(lambda: not one.waits(4))
    assert two.there.steps() == {}
    assert "more than a quarter" in capfd.readouterr().err


def test_an_agent_of_an_earlier_attempt_is_not_heard(nodes: list[Node]) -> None:
    one, two, _ = nodes
    two.begin(1, None, attempt=3)
    one.make(4)
    one.begin(0, two.there.address, attempt=2)
    wait(lambda: not one.waits(4))
    assert two.there.steps() == {}


def test_copies_of_another_shape_are_dropped(nodes: list[Node]) -> None:
    one, two, _ = nodes
    one.make(4)
    two.begin(1, None)
    one.begin(0, two.there.address)
    wait(lambda: two.there.steps() == {0: (4,)})
    part = NodePart(attempt=1, shape=TWO.model_copy(update={"nnodes": 3}), node_rank=1)
    two.there.begin(part, on_poll=lambda: None)
    assert two.there.steps() == {}


def test_a_new_node_begins_without_a_state_that_cannot_be_had(nodes: list[Node]) -> None:
    _, two, new = nodes
    new.begin(0, None, attempt=1, source=two.there.address, step=8)
    assert new.memory.whole_steps() == []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    began = time.monotonic()
    new.begin(0, None, attempt=2, source=f"127.0.0.1:{port}", step=8)
    assert new.memory.whole_steps() == []
    assert time.monotonic() - began < 10


def test_without_the_secret_nothing_is_taken_or_given(nodes: list[Node]) -> None:
    one, two, _ = nodes
    one.make(4)
    one.begin(0, two.there.address)
    wait(lambda: two.there.steps() == {0: (4,)})
    with pytest.raises((OSError, ValueError)):
        call_keeper(two.there.address, "another", "stranger")
    host, _, port = two.there.address.rpartition(":")
    with Stream(socket.create_connection((host, int(port)))) as stranger:
        stranger.write(CopyRequest(want=(0, 4)))
        with pytest.raises((OSError, ValueError)):
            while True:
                stranger.read(CopyAnswer)


@pytest.mark.parametrize("seals", [("00",), ("zz" * 40,), ("00" * 40,)])
def test_what_is_no_seal_is_refused(nodes: list[Node], seals: tuple[str, ...]) -> None:
    with call_keeper(nodes[1].there.address, SECRET, "one") as stream:
        stream.write(CopyRequest(offer=NodeState(node_rank=0, step=1, seals=seals)))
        with pytest.raises((OSError, ValueError)):
            stream.read(CopyAnswer)
    assert nodes[1].there.steps() == {}
