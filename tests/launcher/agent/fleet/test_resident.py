"""An agent that stays: attempt after attempt in one process, and when it ends its own part."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launchyard.launcher.agent.fleet import resident as resident_module
from launchyard.launcher.agent.fleet.crew import Crew, Ending
from launchyard.launcher.agent.fleet.link import Link
from launchyard.launcher.agent.fleet.resident import Resident
from launchyard.launcher.agent.fleet.wire import AgentState
from launchyard.launcher.agent.memory import AgentMemory
from launchyard.launcher.agent.signals import Signals
from launchyard.launcher.agent.torchrun_watch import Node
from launchyard.run.records import Job, OutcomeRecord, Shape
from launchyard.run.rundir import RunDir
from tests.launcher.agent.fleet.conftest import Office, contents_of, seal_all, wait

TWO = Shape(nnodes=2, nproc_per_node=1, device="cpu")


class Hand:
    """In place of an agent: a part goes on until `finish` says with which code, or it is ended."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.finish: dict[int, int] = {}  # attempt -> code
        self.ended: list[int] = []
        self.over = False
        self.memory = AgentMemory()
        self.found: list[list[int]] = []  # the steps that were in memory when an attempt began

    def run(self, node: Node, *, on_poll: Callable[[], None]) -> OutcomeRecord:
        self.found.append(self.memory.whole_steps())
        self.nodes.append(node)
        seal_all(self.memory, 10 * (node.attempt + 1))
        while node.attempt not in self.finish and not self.over:
            try:
                on_poll()
            except BaseException:
                self.ended.append(node.attempt)
                raise
            if node.others.have_failed():
                self.finish[node.attempt] = 1
            time.sleep(0.01)
        node.others.hear_end(self.finish.get(node.attempt))
        return OutcomeRecord(outcome="failed", reason="error", attempt=node.attempt, time=time.time())


class Node2Node:
    """Agents of nodes, each in a thread, and a crew of them."""

    def __init__(self, office: Office, folder: Path) -> None:
        self.office, self.folder = office, folder
        self.hands: dict[str, Hand] = {}
        self.links: dict[str, Link] = {}
        self.threads: dict[str, threading.Thread] = {}

    def add(self, *places: str) -> None:
        for number, place in enumerate(places, start=len(self.hands)):
            hand = self.hands[place] = Hand()
            link = self.links[place] = self.office.link(place, number=number)
            stays = Resident(RunDir(str(self.folder)), hand, link, Signals(), "worker")
            self.threads[place] = threading.Thread(target=stays.stay, daemon=True)
            self.threads[place].start()
            self.office.member(place)

    def attempt(self, crew: Crew, number: int) -> tuple[threading.Thread, list[Ending]]:
        """Begins it in a thread; the list gets its ending."""
        wait(crew.fill)
        job = Job(attempt=number, backend="x", job_id="1", host="h", pid=1, pid_started=0.0, created=0.0,
                  **TWO.model_dump())  # fmt: skip
        found: list[Ending] = []

        def run() -> None:
            found.append(crew.run(job, port=61_000, job_end=None, on_poll=lambda: None, stop=lambda: None))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread, found

    def working(self, place: str, attempt: int) -> None:
        wait(lambda: self.hands[place].nodes and self.hands[place].nodes[-1].attempt == attempt)

    def close(self) -> None:
        """All agents leave: one that went on would print into another test."""
        for hand in self.hands.values():
            hand.over = True
        for thread in self.threads.values():
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def nodes(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node2Node]:
    made = Node2Node(office, tmp_path)
    yield made
    monkeypatch.setattr(resident_module, "ORPHAN_SECONDS", -1.0)
    made.close()


def ending(thread: threading.Thread, found: list[Ending]) -> Ending:
    thread.join(20)
    return found[0]


def test_one_process_runs_attempt_after_attempt_until_it_may_leave(nodes: Node2Node) -> None:
    nodes.add("a", "b")
    crew = Crew(nodes.office.hub, nodes=2, total=2)
    for number in range(3):
        thread, found = nodes.attempt(crew, number)
        for place in "ab":
            nodes.working(place, number)
            nodes.hands[place].finish[number] = 0
        assert ending(thread, found).codes == {0: 0, 1: 0}
        assert crew.kept_step() == 10 * (number + 1), "what memory holds on both"
    assert [node.node_rank for node in nodes.hands["b"].nodes] == [1, 1, 1]
    assert {node.rdzv_endpoint for node in nodes.hands["b"].nodes} == {"127.0.0.1:61000"}
    crew.dismiss()
    for thread in nodes.threads.values():
        thread.join(10)
        assert not thread.is_alive()


def test_the_failure_of_one_node_ends_the_others_at_once(nodes: Node2Node) -> None:
    nodes.add("a", "b")
    crew = Crew(nodes.office.hub, nodes=2, total=2)
    thread, found = nodes.attempt(crew, 0)
    nodes.working("a", 0)
    nodes.working("b", 0)
    began = time.monotonic()
    nodes.hands["b"].finish[0] = 1
    assert ending(thread, found).codes == {0: 1, 1: 1}
    assert time.monotonic() - began < 5.0
    wait(lambda: nodes.hands["a"].nodes[0].others.have_ended() or crew.fill())


def test_a_spare_takes_the_rank_of_a_lost_agent_and_the_lost_one_ends_its_part(nodes: Node2Node) -> None:
    nodes.add("a", "b", "spare")
    crew = Crew(nodes.office.hub, nodes=2, total=3)
    thread, found = nodes.attempt(crew, 0)
    nodes.working("a", 0)
    nodes.working("b", 0)
    assert not nodes.hands["spare"].nodes, "it waits"
    nodes.office.hub.give_up(nodes.office.member("b"))
    lost = ending(thread, found)
    assert list(lost.lost) == [1]
    wait(lambda: nodes.hands["b"].ended == [0])
    thread, found = nodes.attempt(crew, 1)
    nodes.working("spare", 1)
    assert nodes.hands["spare"].nodes[0].node_rank == 1
    for place in ("a", "spare"):
        nodes.hands[place].finish[1] = 0
    ending(thread, found)
    assert [node.attempt for node in nodes.hands["b"].nodes] == [0]


def test_an_agent_that_hears_nothing_ends_its_part_and_later_itself(
    nodes: Node2Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident_module, "FENCE_SECONDS", 1.5)
    monkeypatch.setattr(resident_module, "ORPHAN_SECONDS", 3.0)
    nodes.add("a", "b")
    nodes.attempt(Crew(nodes.office.hub, nodes=2, total=2), 0)
    nodes.working("a", 0)
    nodes.office.hub.close()
    wait(lambda: nodes.hands["a"].ended == [0])
    nodes.threads["a"].join(10)
    assert not nodes.threads["a"].is_alive()


def test_a_part_that_is_withdrawn_before_it_was_begun_holds_up_nobody(nodes: Node2Node) -> None:
    nodes.add("a", "b")
    silent = nodes.office.link("c", number=2)  # takes its orders, and never says that it has begun
    silent.tell(AgentState())
    crew = Crew(nodes.office.hub, nodes=3, total=3)
    thread, found = nodes.attempt(crew, 0)
    nodes.working("a", 0)
    nodes.office.hub.give_up(nodes.office.member("b"))
    assert list(ending(thread, found).lost) == [1]


# -- memory of a node that is lost -----------------------------------------------------------------------------------
def copied(crew: Crew, *ranks: int) -> None:
    """Until what memory holds of these nodes is on others, too."""
    wait(lambda: all(crew._copies_of(rank) for rank in ranks))


def test_a_spare_begins_with_the_memory_of_the_node_whose_place_it_takes(nodes: Node2Node) -> None:
    nodes.add("a", "b", "spare")
    crew = Crew(nodes.office.hub, nodes=2, total=3)
    thread, found = nodes.attempt(crew, 0)
    nodes.working("a", 0)
    nodes.working("b", 0)
    wait(lambda: nodes.hands["b"].memory.slots_of(10) and not nodes.hands["b"].memory.slots_of(10)[0].awaits_copy)
    nodes.office.hub.give_up(nodes.office.member("b"))
    ending(thread, found)
    copied(crew, 1)
    assert crew.kept_step() == 10, "of the lost node on the other one"
    thread, found = nodes.attempt(crew, 1)
    nodes.working("spare", 1)
    assert nodes.hands["spare"].found == [[10]], "before its workers start"
    assert contents_of(nodes.hands["spare"].memory, 10) == contents_of(nodes.hands["b"].memory, 10)
    for place in ("a", "spare"):
        nodes.hands[place].finish[1] = 0
    ending(thread, found)


def test_without_the_neighbour_nothing_of_a_lost_node_is_left(nodes: Node2Node) -> None:
    nodes.add("a", "b", "c", "spare", "other spare")
    crew = Crew(nodes.office.hub, nodes=3, total=5)
    thread, found = nodes.attempt(crew, 0)
    for place in "abc":
        nodes.working(place, 0)
    wait(lambda: all(not nodes.hands[place].memory.oldest_slots()[0].awaits_copy for place in "abc"))
    for place in "bc":  # b's copy is on c
        nodes.office.hub.give_up(nodes.office.member(place))
    ending(thread, found)
    assert crew.kept_step() is None
    thread, found = nodes.attempt(crew, 1)
    nodes.working("spare", 1)
    assert nodes.hands["spare"].found == [[]]
    for place in ("a", "spare", "other spare"):
        nodes.hands[place].finish[1] = 0
    ending(thread, found)
