"""The process of a Ray job: the owner of a run inside the cluster. Its argument is the URL of the run.

Asks Ray for the nodes of an attempt, starts one actor on each, which starts the node's agent, and tries again here
after a failure or when nodes are taken. Ray restarts nothing by itself. If this process dies, Ray ends its actors.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from launchyard.errors import LaunchError
from launchyard.host.processes import wait_until
from launchyard.launcher.agent.conclusion import last_step
from launchyard.launcher.agent.node import adopt_retry_budget
from launchyard.launcher.agent.owner import Owner, serve
from launchyard.launcher.agent.restart_policy import AGENT_LOST, NODE_BAD, NODE_LOST
from launchyard.launcher.agent.root_cause import find_cause
from launchyard.launcher.agent.signals import CANCELLED, Signals, log_line
from launchyard.launcher.agent.torchrun_watch import SURVIVOR_SECONDS
from launchyard.launcher.backends.base import judge_job
from launchyard.launcher.backends.ray.node_actor import NodeActor
from launchyard.launcher.backends.ray.placement import (
    RayNode,
    Reservation,
    cluster_nodes,
    draining,
    enough_without,
    lost_nodes,
    reserve_nodes,
)
from launchyard.launcher.format import first_line
from launchyard.run import layout
from launchyard.run.records import BadNode, Job, OutcomeRecord, Shape, Submission
from launchyard.run.rundir import RunDir

START_SECONDS = 180.0  # for the actors of all nodes to come up; a runtime environment may have to be installed
POLL_SECONDS = 0.2
DRAIN_SECONDS = 1.0
AFTER_FIRST_SECONDS = 60.0  # from the end of one node's agent to the end of all
AFTER_LOSS_SECONDS = 2 * SURVIVOR_SECONDS  # the same when an actor has died: others wait for it in vain
# For Ray to learn of a node's death, after that of its actors: if it still answers for them, and if it does not.
NOTICE_SECONDS = {False: 1.0, True: 20.0}
NOT_NICE = {"RAY_worker_niceness": "0"}  # Ray gives its workers the priority 15, and their children inherit it
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
        self._reservation: Reservation | None = None
        self._doubtful: dict[str, str] = {}  # id -> host of nodes that this job tries last

    def owner(self) -> Owner:
        waiting = self._submission
        return Owner(
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

    def acquire_resources(self, goes_on: Callable[[], bool]) -> Shape | None:
        """Nodes for the next attempt, as many as there are; None if a stop is requested meanwhile."""

        def on_wait(reason: str) -> None:
            log_line(f"waiting: {reason}")
            with contextlib.suppress(OSError):
                self._run.record_waiting(self._submission.job_id, reason)

        self._reservation = reserve_nodes(
            self._bundle,
            self._sizes,
            wait_seconds=self._wait_seconds,
            goes_on=goes_on,
            on_wait=on_wait,
            avoid=self._bad_nodes(),
        )
        with contextlib.suppress(OSError):
            self._run.clear_waiting()
        if self._reservation is None:
            return None
        if self._reservation.nodes < self._sizes[0]:
            log_line(f"going on with {self._reservation.nodes} of {self._sizes[0]} nodes")
        return self._submission.shape.model_copy(update={"nnodes": self._reservation.nodes})

    def _bad_nodes(self) -> list[str]:
        """Returns the nodes to leave out; none if the others are too few."""
        bad = self._doubtful | {node.node_id: node.host for node in self._run.bad_nodes()}
        if not bad:
            return []
        named = " and ".join(sorted(bad.values()))
        if not enough_without(bad, self._bundle, self._sizes[-1]):
            log_line(f"trying them again: {named} could not start this run, but the others are too few")
            return []
        log_line(f"leaving out {named}: nothing of this run could be started there")
        return list(bad)

    def run_nodes(self, job: Job, on_poll: Callable[[], None]) -> OutcomeRecord:
        """All agents of an attempt, to their end."""
        reservation = self._reservation
        assert reservation is not None
        attempt = Attempt(self._run, job, reservation, self._bundle, self._signals)
        try:
            attempt.start(self._submission)
            attempt.watch(on_poll)
        finally:
            attempt.end()
            reservation.give_back()
        record = attempt.conclude()
        if record.reason == AGENT_LOST and record.step is None and len(attempt.lost) == 1:
            self._doubtful |= {node.node_id: node.host for node in attempt.lost_on()}
        return record


class Attempt:
    """The agents of one attempt. `lost`: node rank -> Ray's error for an actor that died, or never came up."""

    def __init__(
        self, run: RunDir, job: Job, reservation: Reservation, bundle: dict[str, float], signals: Signals
    ) -> None:
        self._run = run
        self._job = job
        self._reservation = reservation
        self._bundle = bundle
        self._signals = signals
        self._actors: list[Any] = []
        self._calls: dict[Any, int] = {}
        self._reserved: list[RayNode] = []  # by node rank
        self._nodes: list[dict[str, Any]] = []  # those whose actors are up
        self._stop_forwarded = False
        self._cut_off = False  # an actor cannot be reached, and is not known to be dead
        self._drained_at = 0.0
        self.lost: dict[int, str] = {}
        self.codes: dict[int, int] = {}

    # -- starting --------------------------------------------------------------------------------------------------
    def start(self, submission: Submission) -> None:
        """An actor on each node, then all agents; those that do not come count as lost."""
        import ray

        share = {name: amount for name, amount in self._bundle.items() if name not in ("CPU", "GPU", "memory")}
        amounts = {"num_cpus": self._bundle["CPU"], "num_gpus": self._bundle.get("GPU", 0)}
        if "memory" in self._bundle:
            amounts["memory"] = self._bundle["memory"]
        options = {**amounts, "resources": share, "max_restarts": 0, "runtime_env": {"env_vars": NOT_NICE}}
        kind = ray.remote(NodeActor)
        self._actors = [
            kind.options(**options, scheduling_strategy=self._reservation.strategy(rank)).remote()
            for rank in range(self._reservation.nodes)
        ]
        self._meet()
        if self.lost:
            return
        endpoint = f"{self._nodes[0]['address']}:{self._nodes[0]['port']}"
        for rank, actor in enumerate(self._actors):
            argv = [*attempt_argv(submission.agent, self._job, endpoint), f"--node-rank={rank}"]
            self._calls[actor.run.remote(argv, submission.env)] = rank

    def _meet(self) -> None:
        """Finds the node of each actor, and writes the list for those who want to reach a node."""
        import ray

        there = {node.node_id: node for node in cluster_nodes()}
        gone = RayNode("", "a node", "which is gone", {}, {})
        self._reserved = [replace(there.get(one, gone), node_id=one) for one in self._reservation.node_ids()]
        asked = [actor.facts.remote() for actor in self._actors]
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=START_SECONDS)
        for rank, call in enumerate(asked):
            if call not in ready:
                self.lost[rank] = f"its actor did not start within {START_SECONDS:.0f} s"
                continue
            try:
                facts = ray.get(call)
                self._nodes.append({"rank": rank, **facts, "address": there[facts["node_id"]].address})
            except (ray.exceptions.RayError, KeyError) as error:
                self.lost[rank] = first_line(str(error))
        self._run.write_json(layout.nodes(self._job.attempt), self._nodes)

    # -- watching --------------------------------------------------------------------------------------------------
    def watch(self, on_poll: Callable[[], None]) -> None:
        """Returns when every agent has ended, or has had enough time to after the first one."""
        import ray

        until = float("inf")
        while self._calls and time.monotonic() < until:
            on_poll()
            self._forward_stop()
            ready, _ = ray.wait(list(self._calls), timeout=POLL_SECONDS)
            for call in ready:
                rank = self._calls.pop(call)
                patience = AFTER_FIRST_SECONDS
                try:
                    self.codes[rank] = int(ray.get(call))
                except ray.exceptions.RayError as error:
                    self.lost[rank] = first_line(str(error))
                    self._cut_off |= isinstance(error, ray.exceptions.ActorUnavailableError)
                    patience = AFTER_LOSS_SECONDS
                until = min(until, time.monotonic() + patience)

    def _forward_stop(self) -> None:
        """Writes a notice into the run directory, by which agents save and leave."""
        if self._stop_forwarded:
            return
        reason = self._signals.stop or ("preempted" if self._leaving() else None)
        if reason is None:
            return
        with contextlib.suppress(OSError):
            self._run.give_notice(self._job.attempt, reason)
            self._stop_forwarded = True

    def _leaving(self) -> bool:
        """Returns True if one of our nodes is being drained."""
        now = time.monotonic()
        if now - self._drained_at < DRAIN_SECONDS:
            return False
        self._drained_at = now
        leaving = draining()
        ours = [node for node in self._nodes if node["node_id"] in leaving]
        for node in ours:
            deadline = leaving[node["node_id"]] / 1000
            left = f", in {max(0.0, deadline - time.time()):.0f} s" if 0 < deadline < 1e12 else ""
            log_line(f"{node['host']} is about to be taken{left}: saving")
        return bool(ours)

    # -- the end ---------------------------------------------------------------------------------------------------
    def end(self) -> None:
        """Ray kills the actors, and the kernel all that they have started."""
        import ray

        for actor in self._actors:
            ray.kill(actor, no_restart=True)

    def conclude(self) -> OutcomeRecord:
        """The outcome that rank 0 wrote, if any. A lost node is a better cause than the errors of those who lost it."""
        record = self._run.outcome(self._job.attempt)
        if record is not None and (record.outcome != "failed" or not self.lost):
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
            cause = find_cause(self._run, self._job.attempt, node_rank=0, exit_code=self.codes.get(0))
            more = {"reason": cause.reason, "message": cause.message, "fatal": cause.fatal, "rank": cause.rank}
            record = OutcomeRecord(outcome="failed", **more, **facts)
        self._run.write_outcome(record)
        return record

    def _loss(self) -> tuple[str, str]:
        """Tells the loss of a node from that of its actor. Ray may learn of a node's death a little later."""
        ids = [node.node_id for node in self._reserved]
        wait_until(lambda: bool(lost_nodes(ids)), seconds=NOTICE_SECONDS[self._cut_off], every=0.3)
        dead = lost_nodes(ids)
        gone = {rank: node for rank, node in enumerate(self._reserved) if node.node_id in dead}
        if gone:
            named = " and ".join(map(str, gone.values()))
            return NODE_LOST, f"{named} went away, with node {', '.join(map(str, gone))} of the run"
        rank = min(self.lost)
        where = self._reserved[rank]
        if self._is_bad_node(rank):
            return NODE_BAD, f"{where} cannot start node {rank} of the run: {self.lost[rank]}"
        return AGENT_LOST, f"the actor of node {rank} on {where} died: {self.lost[rank]}"

    def lost_on(self) -> list[RayNode]:
        """The nodes whose actors died, or never came up."""
        return [self._reserved[rank] for rank in self.lost]

    def _is_bad_node(self, rank: int) -> bool:
        """Returns True for a node that alone could not start its actor, and records it; it counts once."""
        node = self._reserved[rank]
        up = {other["rank"] for other in self._nodes}
        alone = len(self.lost) == 1 and rank not in up
        if not alone or node.node_id in {bad.node_id for bad in self._run.bad_nodes()}:
            return False
        record = BadNode(node_id=node.node_id, host=node.host, reason=self.lost[rank], time=time.time())
        with contextlib.suppress(OSError):
            self._run.record_bad_node(record)
            return True
        return False


def attempt_argv(agent: list[str], job: Job, endpoint: str) -> list[str]:
    """The agent's arguments in this attempt, without the interpreter."""
    drawn = {"--attempt=": job.attempt, "--nnodes=": job.nnodes, "--rdzv-endpoint=": endpoint}
    argv = []
    for argument in agent[1:]:
        name = argument.partition("=")[0] + "="
        argv.append(f"{name}{drawn[name]}" if name in drawn and argument.startswith("--") else argument)
    return argv


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
    code = serve(job.owner(), where=f"job {options.job_id}")
    return 0 if code in (0, 75) else code  # Ray has only success and failure


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv))
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
