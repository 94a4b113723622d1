"""The agent of one of several nodes: stays for as long as the job lives, and does what the owner orders.

Knows no policy and no scheduler. An agent that hears nothing of its owner ends its own workers, for another node may be
in their place by then; one whose owner does not come back ends itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from launchyard.launcher.agent.fleet.link import Link
from launchyard.launcher.agent.fleet.neighbours import Neighbours
from launchyard.launcher.agent.fleet.wire import AgentState, NodePart, Orders
from launchyard.launcher.agent.memory import AgentMemory
from launchyard.launcher.agent.signals import Signals, log_line
from launchyard.launcher.agent.torchrun_watch import GRACE_SECONDS, Node, Others
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.storage.errors import StoreError

FENCE_SECONDS = 10.0  # without a word of the owner, until the workers are ended; the owner gives us up before that
ORPHAN_SECONDS = 60.0  # the same until the agent ends
_WAIT_SECONDS = 0.2


class RunsParts(Protocol):
    """An agent, as it is used here; see agent.py."""

    memory: AgentMemory

    def run(self, node: Node, *, on_poll: Callable[[], None]) -> OutcomeRecord: ...


class LetGo(Exception):
    """This part is no part of the run any more: no outcome of it may be written."""


@dataclass
class Part(Others):
    """One part, and what is ordered meanwhile."""

    link: Link
    attempt: int

    def stop(self) -> str | None:
        return self._order.stop

    def have_failed(self) -> bool:
        return self._order.end

    def have_ended(self) -> bool:
        return self._order.others_ended

    def hear_end(self, code: int | None) -> None:
        ended = {"attempt": self.attempt, "phase": "ended", "code": code}
        self.link.tell(self.link.state.model_copy(update=ended))

    def check(self) -> None:
        """LetGo if the owner was not heard for long, or wants something else."""
        if self.link.silent_seconds() > FENCE_SECONDS:
            raise LetGo(f"its owner was not heard for {FENCE_SECONDS:.0f} s")
        ordered = self._order.part
        if ordered is None or ordered.attempt != self.attempt:
            raise LetGo("the run goes on without it")

    @property
    def _order(self) -> Orders:
        return self.link.order or Orders()


@dataclass
class Resident:
    """`worker_module`: of all attempts. While it stays, it keeps copies for another node, and has its own on one."""

    run: RunDir
    agent: RunsParts
    link: Link
    signals: Signals
    worker_module: str
    _last: int = -1
    _neighbours: Neighbours = field(init=False)

    def stay(self) -> None:
        """Takes parts until the owner lets it leave, or is gone."""
        who = self.link.who
        self._neighbours = Neighbours(self.agent.memory, self.link.secret, place=who.place, host=who.host)
        try:
            self._tell(AgentState())
            self._serve()
        finally:
            self._neighbours.close()

    def _serve(self) -> None:
        while self.link.silent_seconds() < ORPHAN_SECONDS:
            order = self.link.order or Orders()
            if order.leave:
                return
            if order.part is not None and order.part.attempt > self._last:
                self._take(order.part)
                continue
            self._tell(self.link.state)
            self.link.wait(_WAIT_SECONDS)
        log_line(f"the owner of {self.run.url} was not heard for {ORPHAN_SECONDS:.0f} s: its agent leaves")

    def _take(self, given: NodePart) -> None:
        self._last = given.attempt
        part = Part(self.link, given.attempt)
        self._tell(AgentState(attempt=given.attempt, phase="running"))
        try:
            self._neighbours.begin(given, on_poll=part.check)
            record = self.agent.run(self._node(given, part), on_poll=part.check)
            log_line(f"attempt {record.attempt} {record.outcome} ({record.reason}): {record.message}")
        except LetGo as why:
            log_line(f"attempt {given.attempt} was ended on this node: {why}")
        except StoreError as error:
            said = f"the outcome of attempt {given.attempt} could not be written; its checkpoints are intact."
            log_line(f"{said} {error}")
        self.signals.preempted = False  # it was for this attempt
        self._tell(AgentState(attempt=given.attempt, phase="free", code=self.link.state.code))

    def _tell(self, state: AgentState) -> None:
        """With what memory holds now, if the owner does not know that yet."""
        here = {
            "steps": tuple(self.agent.memory.whole_steps()),
            "copies": self._neighbours.steps(),
            "keeper": self._neighbours.address,
        }
        if (told := state.model_copy(update=here)) != self.link.state:
            self.link.tell(told)

    def _node(self, given: NodePart, part: Part) -> Node:
        return Node(
            self.run,
            given.attempt,
            given.shape,
            node_rank=given.node_rank,
            rdzv_endpoint=given.rdzv_endpoint,
            job_end=given.job_end,
            grace_seconds=given.grace_seconds or GRACE_SECONDS,
            worker_module=self.worker_module,
            others=part,
        )
