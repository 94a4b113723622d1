"""The agents of a run on Ray: an actor on each reserved node starts one, which stays while the run has that node.

Ray tells which could not be started, and why; the hub tells which live. Decides on no restart.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from launchyard.host.environment import HUB, HUB_SECRET
from launchyard.launcher.agent.fleet.crew import Crew
from launchyard.launcher.agent.fleet.hub import Hub
from launchyard.launcher.agent.fleet.wire import Hello
from launchyard.launcher.backends.ray.node_actor import NodeActor
from launchyard.launcher.backends.ray.placement import RayNode, Reservation, own_address, reserved_nodes
from launchyard.launcher.backends.ray.request import agent_words
from launchyard.launcher.format import first_line

START_SECONDS = 180.0  # for the actors of all nodes to come up; a runtime environment may have to be installed
CONNECT_SECONDS = 120.0  # for their agents
END_SECONDS = 5.0  # for an actor that was killed, and for agents that were told to leave
NEWS_SECONDS = {True: 1.0, False: 20.0}  # if Ray knows an actor to be dead already, and if it does not
POLL_SECONDS = 0.1
NOT_NICE = {"RAY_worker_niceness": "0"}  # Ray gives its workers the priority 15, and their children inherit it


@dataclass
class OnNode:
    """What there is on one reserved node. `call`: the actor's that lasts as long as its agent."""

    actor: Any
    node: RayNode
    pid: int = 0  # of the actor, once it is up
    call: Any = None


class NodeAgents:
    """Those of one reservation. A node is known by its number there, which is its rank unless several were replaced."""

    def __init__(self, run_url: str, env: dict[str, str], reservation: Reservation, bundle: dict[str, float]) -> None:
        self.reservation = reservation
        self._run_url = run_url
        self._env = env
        self._bundle = bundle
        self._secret = secrets.token_hex(32)
        self._hub = Hub(self._secret, host=own_address())
        self.crew = Crew(self._hub, nodes=reservation.nodes, total=reservation.nodes)
        self._placed: dict[int, OnNode] = {}

    # -- starting ------------------------------------------------------------------------------------------------------
    def start(self, on_poll: Callable[[], None]) -> dict[int, str]:
        """One on each node that has none that lives. Those that did not come: number -> why; then none was begun."""
        living = {member.hello.number for member in self._hub.members()}
        missing = [number for number in range(self.reservation.nodes) if number not in living]
        actorless = [number for number in missing if not self._is_idle(number)]
        for number in actorless:
            self._end(number)
        self._placed |= self._place(actorless)
        failed = self._meet(actorless, on_poll)
        if failed:
            return failed
        for number in missing:
            self._begin(self._placed[number], number)
        return self._await(on_poll)

    def _is_idle(self, number: int) -> bool:
        """Returns True for an actor that has outlived its agent, and can start another one."""
        placed = self._placed.get(number)
        return placed is not None and self._ending(number) is not None and self.actor_error(number) is None

    def _place(self, numbers: list[int]) -> dict[int, OnNode]:
        import ray

        nodes = reserved_nodes(self.reservation)
        share = {name: amount for name, amount in self._bundle.items() if name not in ("CPU", "GPU", "memory")}
        amounts = {"num_cpus": self._bundle["CPU"], "num_gpus": self._bundle.get("GPU", 0)}
        if "memory" in self._bundle:
            amounts["memory"] = self._bundle["memory"]
        options = {**amounts, "resources": share, "max_restarts": 0, "runtime_env": {"env_vars": NOT_NICE}}
        kind = ray.remote(NodeActor)
        return {
            number: OnNode(
                kind.options(**options, scheduling_strategy=self.reservation.strategy(number)).remote(), nodes[number]
            )
            for number in numbers
        }

    def _meet(self, numbers: list[int], on_poll: Callable[[], None]) -> dict[int, str]:
        """Waits for the actors, and finds their nodes."""
        import ray

        asked = {number: self._placed[number].actor.facts.remote() for number in numbers}
        waiting = list(asked.values())
        until = time.monotonic() + START_SECONDS
        while waiting and time.monotonic() < until:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_SECONDS)
            on_poll()
        nodes = reserved_nodes(self.reservation)
        failed = {}
        for number, call in asked.items():
            if call in waiting:
                failed[number] = f"its actor did not start within {START_SECONDS:.0f} s"
                continue
            try:
                self._placed[number].pid = int(ray.get(call)["pid"])
                self._placed[number].node = nodes[number]
            except ray.exceptions.RayError as error:
                failed[number] = first_line(str(error))
        return failed

    def _begin(self, placed: OnNode, number: int) -> None:
        who = [f"--place={placed.node}", f"--number={number}", f"--host={placed.node.address}"]
        env = {**self._env, HUB: self._hub.address, HUB_SECRET: self._secret}
        placed.call = placed.actor.run.remote([*agent_words(self._run_url), *who], env)

    def _await(self, on_poll: Callable[[], None]) -> dict[int, str]:
        """Waits until every agent is connected and free."""
        until = time.monotonic() + CONNECT_SECONDS
        while not self.crew.fill():
            on_poll()
            free = {member.hello.number for member in self._hub.members() if member.is_free}
            missing = [number for number in self._placed if number not in free]
            if ended := {number: why for number in missing if (why := self._ending(number))}:
                return ended
            if time.monotonic() > until:
                return dict.fromkeys(missing, f"its agent did not come within {CONNECT_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)
        return {}

    def _ending(self, number: int) -> str | None:
        """Of its agent; None while it lives."""
        import ray

        call = self._placed[number].call
        if call is None or not ray.wait([call], timeout=0)[0]:
            return None
        return self.actor_error(number) or f"its agent ended with code {ray.get(call)}"

    def move(self, number: int, avoid: Collection[str]) -> bool:
        """From its node, which is given back at once, to another one, if there is a free one; not to these."""
        if not self.reservation.pinned:
            return False
        for member in self._hub.members():
            if member.hello.number == number:
                self._hub.give_up(member)
        self._end(number, seconds=0.0)
        self.reservation.leave(number)
        return self.reservation.take(number, self._bundle, avoid)

    # -- looking -------------------------------------------------------------------------------------------------------
    def actor_error(self, number: int) -> str | None:
        """Ray's word for an actor that has died."""
        error = self._error(number)
        return None if error is None else first_line(str(error))

    def _error(self, number: int) -> Exception | None:
        import ray

        call = self._placed[number].call
        if call is None or not ray.wait([call], timeout=0)[0]:
            return None
        try:
            ray.get(call)
        except ray.exceptions.RayError as error:
            found: Exception = error
            return found
        return None

    def seconds_to_news(self, number: int) -> float:
        """For Ray to learn of the death of a node whose agent is gone; none if its actor lives."""
        import ray

        if self._is_idle(number):
            return 0.0
        error = self._error(number)
        is_dead = error is not None and not isinstance(error, ray.exceptions.ActorUnavailableError)
        return NEWS_SECONDS[is_dead]

    def node(self, number: int) -> RayNode:
        return self._placed[number].node

    def is_up(self, number: int) -> bool:
        """Returns True once its actor was there."""
        return self._placed[number].pid != 0

    def facts(self) -> list[dict[str, str | int]]:
        """For those who want to reach a node: who takes part, by rank."""
        taken: dict[int, Hello] = dict(enumerate(self.crew.taken()))
        return [
            {
                "rank": rank,
                "node_id": placed.node.node_id,
                "host": placed.node.host,
                "address": placed.node.address,
                "pid": placed.pid,
                "agent": hello.pid,
            }
            for rank, hello in taken.items()
            for placed in [self._placed[hello.number]]
        ]

    # -- the end -------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """The agents leave, Ray kills the actors, the kernel all that they have started. The nodes are given back."""
        import ray

        self.crew.dismiss()
        living = {member.hello.number for member in self._hub.members()}
        calls = [placed.call for number, placed in self._placed.items() if number in living and placed.call is not None]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=END_SECONDS)
        for placed in self._placed.values():
            ray.kill(placed.actor, no_restart=True)
        self._hub.close()
        self.reservation.give_back()

    def _end(self, number: int, *, seconds: float = END_SECONDS) -> None:
        """What is left on a node whose agent is lost, a frozen one too."""
        import ray

        placed = self._placed.pop(number, None)
        if placed is None:
            return
        ray.kill(placed.actor, no_restart=True)
        if placed.call is not None:
            ray.wait([placed.call], timeout=seconds)
