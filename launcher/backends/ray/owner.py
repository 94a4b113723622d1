"""The process of a Ray job: the owner of a run inside the cluster. Its argument is the URL of the run.

Asks Ray for nodes, has an actor on each, which starts the node's agent, and tries again here after a failure or when
nodes are taken: with the same agents, as long as their nodes will do. Ray restarts nothing by itself. If this process
dies, Ray ends its actors.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

from launchyard.errors import LaunchError
from launchyard.host.ports import free_port
from launchyard.host.processes import wait_until
from launchyard.launcher.agent.conclusion import last_step
from launchyard.launcher.agent.fleet.crew import Ending
from launchyard.launcher.agent.node import adopt_retry_budget
from launchyard.launcher.agent.owner import Owner, serve
from launchyard.launcher.agent.restart_policy import AGENT_LOST, NODE_BAD, NODE_LOST, NODE_SILENT
from launchyard.launcher.agent.root_cause import LOST_PEER, NO_OUTCOME, find_cause
from launchyard.launcher.agent.signals import CANCELLED, Signals, log_line
from launchyard.launcher.backends.base import judge_job
from launchyard.launcher.backends.ray.agents import NodeAgents
from launchyard.launcher.backends.ray.placement import (
    SMALLER_SECONDS,
    RayNode,
    Reservation,
    draining,
    enough_without,
    has_room_for,
    lost_nodes,
    other_nodes,
    reserve_nodes,
    shortage,
)
from launchyard.run import layout
from launchyard.run.records import BadNode, Job, OutcomeRecord, Shape, Submission
from launchyard.run.rundir import RunDir

NEWS_SECONDS = 30.0  # at most, for Ray to learn of a node's death after that of its agent
DRAIN_SECONDS = 1.0
KEEP_SECONDS = 180.0  # for another node in the place of one, while the others do nothing; a pod is there by then
KEEP_POLL_SECONDS = 1.0
ACCEPT_SECONDS = 60.0  # for the launcher to record that Ray has taken the job


class InCluster:
    """One job, whose attempts get their nodes one after another."""

    def __init__(
        self,
        run: RunDir,
        submission: Submission,
        signals: Signals,
        *,
        bundle: dict[str, float],
        sizes: list[int],
        wait_seconds: float,
    ) -> None:
        self._run = run
        self._submission = submission
        self._signals = signals
        self._bundle = bundle
        self._sizes = sizes
        self._wait_seconds = wait_seconds
        self._agents: NodeAgents | None = None
        self._doubtful: dict[str, str] = {}  # id -> host of nodes that this job tries last
        self._said = ""

    def owner(self) -> Owner:
        waiting = self._submission
        owner = Owner(
            self._run,
            "ray",
            waiting.job_id,
            waiting.shape,
            waiting.overrides,
            self._signals,
            self.run_nodes,
            judge_job,
            acquire_resources=self.acquire_resources,
            since=waiting.submitted,  # a stop that was asked while Ray was starting us is meant for us
        )
        owner.kept_step = self._kept_step
        return owner

    def _kept_step(self) -> int | None:
        return None if self._agents is None else self._agents.crew.kept_step()

    # -- nodes ---------------------------------------------------------------------------------------------------------
    def acquire_resources(self, goes_on: Callable[[], bool]) -> Shape | None:
        """Nodes for the next attempt, as many as there are: those that we have stay, for their agents are
        there. None if a stop is requested meanwhile."""
        began = time.monotonic()
        if self._agents is not None and not self._can_stay(self._agents, goes_on):
            self.leave()
        if self._agents is None:
            reservation = self._reserve(goes_on, time.monotonic() - began)
            if reservation is None:
                return None
            self._agents = NodeAgents(self._run.url, self._submission.env, reservation, self._bundle)
        return self._submission.shape.model_copy(update={"nnodes": self._agents.reservation.nodes})

    def _can_stay(self, agents: NodeAgents, goes_on: Callable[[], bool]) -> bool:
        """Waits a while for others in the place of nodes to be left, for what agents have in memory goes with them.

        Returns False if there are none, or if more nodes can be had than we have.
        """
        until = time.monotonic() + (self._wait_seconds if len(self._sizes) > 1 else KEEP_SECONDS)
        said = ""
        while True:
            held = agents.reservation.node_ids()
            unfit = {*self._bad_nodes(), *draining()}
            left = unfit | lost_nodes(held)
            if self._can_grow({*held} - left, left, than=len(held)):
                return False
            moved = [agents.move(number, left) for number, node in enumerate(held) if node in left]
            if all(moved):
                self._clear_wait()
                return True
            stuck = not agents.reservation.pinned and unfit.intersection(held)
            if stuck or time.monotonic() > until or not goes_on():
                return False
            if (reason := shortage(self._bundle, self._sizes, other_nodes(left), held)) != said:
                self._record_wait(reason)
                said = reason
            time.sleep(KEEP_POLL_SECONDS)

    def _can_grow(self, held: set[str], left: set[str], *, than: int) -> bool:
        larger = [size for size in self._sizes if size > than]
        return bool(larger) and has_room_for(self._bundle, min(larger), held, left)

    def _reserve(self, goes_on: Callable[[], bool], waited: float) -> Reservation | None:
        found = reserve_nodes(
            self._bundle,
            self._sizes,
            wait_seconds=max(SMALLER_SECONDS, self._wait_seconds - waited),
            goes_on=goes_on,
            on_wait=self._record_wait,
            avoid=self._bad_nodes(),
        )
        self._clear_wait()
        if found is not None and found.nodes < self._sizes[0]:
            log_line(f"going on with {found.nodes} of {self._sizes[0]} nodes")
        return found

    def _record_wait(self, reason: str) -> None:
        log_line(f"waiting: {reason}")
        with contextlib.suppress(OSError):
            self._run.record_waiting(self._submission.job_id, reason)

    def _clear_wait(self) -> None:
        with contextlib.suppress(OSError):
            self._run.clear_waiting()

    def _bad_nodes(self) -> list[str]:
        """Returns the nodes to leave out; none if the others are too few."""
        bad = self._doubtful | {node.node_id: node.host for node in self._run.bad_nodes()}
        if not bad:
            return []
        named = " and ".join(sorted(bad.values()))
        if not enough_without(bad, self._bundle, self._sizes[-1]):
            self._say(f"trying them again: {named} could not start this run or fell silent, but the others are too few")
            return []
        self._say(f"leaving out {named}: nothing of this run could be started there, or it fell silent")
        return list(bad)

    def _say(self, line: str) -> None:
        if line != self._said:
            log_line(line)
        self._said = line

    def leave(self) -> None:
        """The agents leave, and the nodes are given back."""
        agents = self._agents
        self._agents = None
        if agents is not None:
            agents.close()

    # -- an attempt ----------------------------------------------------------------------------------------------------
    def run_nodes(self, job: Job, on_poll: Callable[[], None]) -> OutcomeRecord:
        """All agents of an attempt, to the end of their parts."""
        assert self._agents is not None
        attempt = Attempt(self._run, job, self._agents, self._signals)
        record = attempt.make(on_poll)
        unstarted = record.reason == AGENT_LOST and record.step is None and len(attempt.lost) == 1
        if unstarted or record.reason == NODE_SILENT:
            self._doubtful |= {node.node_id: node.host for node in attempt.lost.values()}
        return record


class Attempt:
    """One attempt of the agents. `lost`: the nodes whose agents died, fell silent, or never came, by rank."""

    def __init__(self, run: RunDir, job: Job, agents: NodeAgents, signals: Signals) -> None:
        self._run = run
        self._job = job
        self._agents = agents
        self._signals = signals
        self._reserved = agents.reservation.node_ids()
        self._unstarted: dict[int, str] = {}  # number -> why
        self._ending = Ending()
        self._preempted: str | None = None
        self._drained_at = 0.0
        self.lost: dict[int, RayNode] = {}

    def make(self, on_poll: Callable[[], None]) -> OutcomeRecord:
        self._unstarted = self._agents.start(on_poll)
        self._run.write_json(layout.nodes(self._job.attempt), self._agents.facts())
        if self._unstarted:
            self.lost = {number: self._agents.node(number) for number in self._unstarted}
            return self._conclude()
        self._ending = self._agents.crew.run(
            self._job, port=free_port(), job_end=None, on_poll=on_poll, stop=self._reason_to_stop
        )
        self.lost = {rank: self._agents.node(member.hello.number) for rank, member in self._ending.lost.items()}
        return self._conclude()

    def _reason_to_stop(self) -> str | None:
        """That of a person, or that one of our nodes is being drained."""
        now = time.monotonic()
        if self._preempted is None and now - self._drained_at >= DRAIN_SECONDS:
            self._drained_at = now
            self._preempted = "preempted" if self._leaving() else None
        return self._signals.stop or self._preempted

    def _leaving(self) -> bool:
        leaving = draining()
        ours = [node for node in self._agents.facts() if node["node_id"] in leaving]
        for node in ours:
            deadline = leaving[str(node["node_id"])] / 1000
            left = f", in {max(0.0, deadline - time.time()):.0f} s" if 0 < deadline < 1e12 else ""
            log_line(f"{node['host']} is about to be taken{left}: saving")
        return bool(ours)

    # -- the end -------------------------------------------------------------------------------------------------------
    def _conclude(self) -> OutcomeRecord:
        """The outcome that rank 0 wrote, if any. A lost node is a better cause than the errors of those who lost it."""
        record = self._run.outcome(self._job.attempt)
        if record is not None and (not self.lost or record.reason not in (LOST_PEER, NO_OUTCOME)):
            return record
        facts: dict[str, Any] = {"attempt": self._job.attempt, "time": time.time()}
        facts["step"] = last_step(self._run, self._job.attempt)
        request = self._run.stop_requested()
        if request is not None and request.get("reason") == CANCELLED:
            return OutcomeRecord(outcome="stopped", reason=CANCELLED, message="cancelled, nothing was saved", **facts)
        if self.lost:
            reason, message = self._loss()
            record = OutcomeRecord(outcome="failed", reason=reason, message=message, **facts)
        else:
            cause = find_cause(self._run, self._job.attempt, node_rank=0, exit_code=self._ending.codes.get(0))
            more = {"reason": cause.reason, "message": cause.message, "fatal": cause.fatal, "rank": cause.rank}
            record = OutcomeRecord(outcome="failed", **more, **facts)
        self._run.write_outcome(record)
        return record

    def _loss(self) -> tuple[str, str]:
        """Tells the loss of a node from that of its agent. Ray may learn of a node's death a little later."""
        ids = [node.node_id for node in self.lost.values()]
        began = time.monotonic()

        def is_known() -> bool:
            left = [member.hello.number for member in self._ending.lost.values() if member.lost == "gone"]
            patience = max((self._agents.seconds_to_news(number) for number in left), default=0.0)
            return bool(lost_nodes(ids)) or time.monotonic() - began > patience

        wait_until(is_known, seconds=NEWS_SECONDS, every=0.3)
        dead = lost_nodes(ids)
        gone = {rank: node for rank, node in self.lost.items() if node.node_id in dead}
        if gone:
            named = " and ".join(map(str, gone.values()))
            return NODE_LOST, f"{named} went away, with node {', '.join(map(str, gone))} of the run"
        return self._unstarted_node() if self._unstarted else self._lost_agent()

    def _lost_agent(self) -> tuple[str, str]:
        """Ray's word for an actor that died is more than that its agent, which dies with it, is gone."""
        reason, message = self._ending.loss()
        rank = min(self.lost)
        error = self._agents.actor_error(self._ending.lost[rank].hello.number)
        if reason == AGENT_LOST and error is not None:
            message = f"the actor of node {rank} on {self.lost[rank]} died: {error}"
        return reason, message

    def _unstarted_node(self) -> tuple[str, str]:
        number = min(self._unstarted)
        where = self.lost[number]
        if self._is_bad_node(number):
            return NODE_BAD, f"{where} cannot start node {number} of the run: {self._unstarted[number]}"
        return AGENT_LOST, f"there is no agent for node {number} of the run on {where}: {self._unstarted[number]}"

    def _is_bad_node(self, number: int) -> bool:
        """Returns True for a node that alone could not start its actor, and records it; it counts once."""
        node = self.lost[number]
        alone = len(self._unstarted) == 1 and not self._agents.is_up(number)
        if not alone or node.node_id in {bad.node_id for bad in self._run.bad_nodes()}:
            return False
        record = BadNode(node_id=node.node_id, host=node.host, reason=self._unstarted[number], time=time.time())
        with contextlib.suppress(OSError):
            self._run.record_bad_node(record)
            return True
        return False


def _own_submission(run: RunDir, job_id: str) -> Submission:
    """Waits for the launcher's record of this job, written when Ray has answered, perhaps after our start."""

    def is_ours() -> bool:
        newest = run.newest_submission()
        return newest is not None and newest.job_id == job_id

    if not wait_until(is_ours, seconds=ACCEPT_SECONDS, every=0.2 if run.local else 1.0):
        raise LaunchError(f"{run.url}: job {job_id} not found in its submissions")
    found = run.newest_submission()
    assert found is not None
    return found


def _number(text: str) -> float:
    """Returns an int for a whole number: Ray wants that of memory."""
    number = float(text)
    return int(number) if number.is_integer() else number


def main(argv: list[str]) -> int:
    import ray

    parser = argparse.ArgumentParser(
        prog="python -m launchyard.launcher.backends.ray.owner", description="Owns a run inside Ray."
    )
    parser.add_argument("run_url")
    parser.add_argument("--job-id", required=True)
    parser.add_argument("--bundle", action="append", default=[], help="NAME=AMOUNT that each node must give")
    parser.add_argument("--sizes", required=True, help="numbers of nodes that will do, the most first")
    parser.add_argument("--wait-seconds", type=float, required=True, help="for the first of them")
    options = parser.parse_args(argv[1:])
    ray.init(logging_level="ERROR")
    signals = Signals()
    signals.install()  # after Ray's own handlers
    run = RunDir(options.run_url)
    adopt_retry_budget(run)
    bundle = {name: _number(amount) for name, _, amount in (text.rpartition("=") for text in options.bundle)}
    job = InCluster(
        run,
        _own_submission(run, options.job_id),
        signals,
        bundle=bundle,
        sizes=[int(text) for text in options.sizes.split(",")],
        wait_seconds=options.wait_seconds,
    )
    try:
        code = serve(job.owner(), where=f"job {options.job_id}")
    finally:
        job.leave()
    return 0 if code in (0, 75) else code  # Ray has only success and failure


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv))
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
