"""Who of a job's agents takes part in an attempt, at which rank, and how their parts end. Decides on no restart.

A rank keeps its agent for as long as that lives, so that what an attempt leaves on a node is of use to the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from launchyard.launcher.agent.fleet.hub import SILENT_SECONDS, Hub, Member
from launchyard.launcher.agent.fleet.wire import Hello, NodePart, Orders
from launchyard.launcher.agent.restart_policy import AGENT_LOST, NODE_SILENT
from launchyard.launcher.agent.signals import POLL_SECONDS, log_line
from launchyard.run.records import Job, Shape

PARTS_END_SECONDS = 60.0  # from the end of the first part to the end of all, or of what is left of them
SPARES_SECONDS = 5.0  # for spare agents, once there are enough for an attempt


@dataclass
class Ending:
    """How the parts of an attempt ended. `lost`: rank -> its agent. `codes`: rank -> that of its torchrun.

    `unstarted`: agents that did not come, for which nothing was begun.
    """

    lost: dict[int, Member] = field(default_factory=dict)
    codes: dict[int, int | None] = field(default_factory=dict)
    unstarted: int = 0

    def loss(self) -> tuple[str, str]:
        """Reason and message for the first agent that was lost, the silent before those that are gone."""
        if not self.lost:
            return AGENT_LOST, f"the agents of {self.unstarted} nodes did not start; the job's log tells why"
        rank, member = min(self.lost.items(), key=lambda one: (one[1].lost != "silent", one[0]))
        node = f"node {rank} of the run on {member.hello.place}"
        if member.lost == "silent":
            what = f"{node} was silent for {SILENT_SECONDS:.0f} s: it is frozen, or its network is cut"
            return NODE_SILENT, what
        if member.lost == "stuck":
            what = f"{node} had not ended its part {PARTS_END_SECONDS:.0f} s after the first one had"
            return AGENT_LOST, what
        return AGENT_LOST, f"the agent of {node} is gone (process {member.hello.pid}): killed, or its node was lost"


class Crew:
    """`nodes` agents take part; further ones wait to take the place of one that is lost."""

    def __init__(self, hub: Hub, *, nodes: int, total: int) -> None:
        self._hub = hub
        self._total = total
        self._seats: list[Member | None] = [None] * nodes
        self._enough_since: float | None = None
        self._shape: Shape | None = None  # of the last attempt, which what memory holds is of
        self._doubtful: set[str] = set()  # nodes whose agents were lost before: they are taken last
        self.has_begun = False
        self.lost: dict[str, Member] = {}  # by node: agents of ranks, until there is another one

    # -- seats ---------------------------------------------------------------------------------------------------------
    def fill(self) -> bool:
        """Gives empty seats to agents that are free. Returns True if each rank has one that can begin."""
        if not self.has_begun and not self._all_here():
            return False
        self._forget_lost()
        found = (member for member in self._hub.members() if member not in self._seats and member.is_free)
        free = iter(sorted(found, key=lambda member: member.hello.place in self._doubtful))
        for rank, seat in enumerate(self._seats):
            if seat is None and (taker := next(free, None)) is not None:
                self._seats[rank] = taker
                if self.has_begun:
                    log_line(f"{taker.hello.place} is node {rank} of the run from now on")
        full = all(seat is not None and seat.is_free for seat in self._seats)
        self.has_begun = self.has_begun or full
        return full

    def _forget_lost(self) -> None:
        for rank, seat in enumerate(self._seats):
            if seat is not None and seat.lost is not None:
                self.lost[seat.hello.place] = seat
                self._doubtful.add(seat.hello.place)
                self._seats[rank] = None
        for place in self.lost.keys() & set(self.places()):
            del self.lost[place]

    def _all_here(self) -> bool:
        """At the start: all agents, or after a while enough of them, so that the first nodes take part."""
        count = len(self._hub.members())
        if count < len(self._seats):
            self._enough_since = None
            return False
        self._enough_since = self._enough_since or time.monotonic()
        return count >= self._total or time.monotonic() - self._enough_since > SPARES_SECONDS

    def places(self) -> list[str]:
        """The names of the nodes whose agents live."""
        return [member.hello.place for member in self._hub.members()]

    def taken(self) -> list[Hello]:
        """Those who take part, by rank."""
        return [seat.hello for seat in self._seats if seat is not None]

    def kept_step(self) -> int | None:
        """The newest step that memory holds of every node that takes part, a copy on another one included; or None."""
        held = [set(self._own_steps(rank)) | self._copies_of(rank).keys() for rank in range(len(self._seats))]
        return max(set.intersection(*held), default=None)

    def _own_steps(self, rank: int) -> tuple[int, ...]:
        seat = self._seats[rank]
        return () if seat is None or seat.lost is not None else seat.state.steps

    def _copies_of(self, rank: int) -> dict[int, Member]:
        """By step, who has a copy of what belongs to that rank."""
        return {step: member for member in self._hub.members() for step in member.state.copies.get(rank, ())}

    # -- an attempt ----------------------------------------------------------------------------------------------------
    def run(
        self, job: Job, *, port: int, job_end: float | None, on_poll: Callable[[], None], stop: Callable[[], str | None]
    ) -> Ending:
        """One attempt of agents that all have a seat, until every part has ended, or its agent is lost.

        stop: the reason for which all are to save and leave, once there is one.
        """
        seats = {rank: seat for rank, seat in enumerate(self._seats) if seat is not None}
        parts = self._parts(job, seats, endpoint=f"{seats[0].hello.host}:{port}", job_end=job_end)
        ending = Ending()
        until = float("inf")
        self._command(seats, parts, ending, stop())
        while self._busy(seats, job.attempt, ending) and time.monotonic() < until:
            over = len(ending.codes) + len(ending.lost)
            if over and until == float("inf"):
                until = time.monotonic() + PARTS_END_SECONDS
            self._command(seats, parts, ending, stop())
            on_poll()
            time.sleep(POLL_SECONDS / 2)
        self._release(seats, job.attempt, ending)
        return ending

    def _parts(
        self, job: Job, seats: dict[int, Member], *, endpoint: str, job_end: float | None
    ) -> dict[int, NodePart]:
        """Each node copies its state to the next one; one that lacks what all others have gets it from a copy."""
        step = self.kept_step() if self._shape == job.shape else None
        self._shape = job.shape
        parts = {}
        for rank in seats:
            source = None if step is None or step in self._own_steps(rank) else self._copies_of(rank)[step]
            if source is not None:
                log_line(f"node {rank} gets its state of step {step} from {source.hello.place}")
            parts[rank] = NodePart(
                attempt=job.attempt,
                shape=job.shape,
                node_rank=rank,
                rdzv_endpoint=endpoint,
                job_end=job_end,
                buddy=seats[(rank + 1) % len(seats)].state.keeper if len(seats) > 1 else None,
                source=None if source is None else source.state.keeper,
                source_step=step or 0,
            )
        return parts

    def _busy(self, seats: dict[int, Member], attempt: int, ending: Ending) -> bool:
        """Writes down what has ended; True while a part goes on."""
        busy = False
        for rank, member in seats.items():
            said = member.state
            ours = said.attempt == attempt
            if ours and said.phase in ("ended", "free"):
                ending.codes.setdefault(rank, said.code)
            over = _is_over(member, attempt)
            if member.lost is not None and not over:
                ending.lost.setdefault(rank, member)
            busy |= member.lost is None and not over
        return busy

    def _command(self, seats: dict[int, Member], parts: dict[int, NodePart], ending: Ending, stop: str | None) -> None:
        """Without a lost agent the parts are to end as they can, and tell the cause; else the owner knows it."""
        failed = any(ending.codes.values()) or None in ending.codes.values()
        over = ending.codes.keys() | ending.lost.keys()
        for rank, member in seats.items():
            if ending.lost and rank not in over:
                self._hub.command(member, Orders())
                continue
            others = seats.keys() - {rank}
            order = Orders(
                part=parts[rank], stop=stop, end=failed and rank not in over, others_ended=others <= over and bool(over)
            )
            self._hub.command(member, order)

    def _release(self, seats: dict[int, Member], attempt: int, ending: Ending) -> None:
        """Nothing of the attempt goes on. An agent that has not ended its part in all that time is given up."""
        for rank, member in seats.items():
            if member.lost is None and not _is_over(member, attempt):
                self._hub.give_up(member)
                ending.lost.setdefault(rank, member)
            self._hub.command(member, Orders())

    # -- the end -------------------------------------------------------------------------------------------------------
    def dismiss(self) -> None:
        """All agents leave."""
        for member in self._hub.members():
            self._hub.command(member, Orders(leave=True))


def _is_over(member: Member, attempt: int) -> bool:
    """Its part has ended, or was withdrawn before it was begun."""
    said = member.state
    return said.phase in ("idle", "free") and (said.attempt == attempt or member.order.part is None)
