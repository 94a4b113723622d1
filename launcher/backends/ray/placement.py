"""Resources for an attempt on a Ray cluster: a bundle on each of so many nodes, waited for, reserved, given back.

Knows no run. Everything of Ray's interface that is not public is used here: the nodes that are being drained.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from launchyard.host.processes import wait_until

POLL_SECONDS = 0.25
SMALLER_SECONDS = 3.0  # for a smaller number of nodes, which is there already or is not
WAIT_REPORT_SECONDS = 1.0  # before the reason of a wait is reported
A_BIT = 0.001  # of a resource that only names something
CHOICE_SECONDS = 5.0  # for nodes that were free a moment ago; then others are chosen
KNOCK_SECONDS = 1.0  # for a raylet's port to open; the kernel opens it, however busy the node is
_KNOCKS = 16  # at a time


@dataclass(frozen=True)
class RayNode:
    """A node of Ray, with its resources by Ray's names: all that it has, and what nobody has taken."""

    node_id: str
    host: str
    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.host} ({self.address})"


class Reservation:
    """Bundles on different nodes, by number, each a placement group and the place in it.

    `pinned`: each is for one certain node, in a group of its own: Ray looks for no other node when that one dies, and
    gets it back as soon as it is left. Else all are in one group, which Ray has placed.
    """

    def __init__(self, bundles: list[tuple[Any, int]], *, pinned: bool) -> None:
        self.nodes = len(bundles)
        self.pinned = pinned
        self._bundles = dict(enumerate(bundles))  # without those that were left

    def strategy(self, number: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group, index = self._bundles[number]
        return PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=index, placement_group_capture_child_tasks=False
        )

    def node_ids(self) -> list[str]:
        """By number; empty for one that was left, or that Ray knows to be dead."""
        tables = {group: _nodes_of(group) for group in self._groups()}
        found = {number: tables[group].get(index, "") for number, (group, index) in self._bundles.items()}
        return [found.get(number, "") for number in range(self.nodes)]

    def is_there(self) -> bool:
        """Returns True once every bundle has got its node; asked at the beginning."""
        return all(_is_there(group) for group in self._groups())

    def leave(self, number: int) -> None:
        """Of the pinned ones: a node is given back. All that ran on it is ended."""
        if number in self._bundles:
            _remove(self._bundles.pop(number)[0])

    def take(self, number: int, bundle: dict[str, float], avoid: Collection[str]) -> bool:
        """A node in the place of one that was left, if one is free now."""
        free = _free_nodes(bundle, {*self.node_ids(), *avoid})
        if not free:
            return False
        taken = _ask_for(bundle, free[:1])
        if not wait_until(taken.is_there, seconds=CHOICE_SECONDS, every=POLL_SECONDS):
            taken.give_back()
            return False
        self._bundles[number] = taken._bundles[0]
        return True

    def give_back(self) -> None:
        for group in self._groups():
            _remove(group)

    def _groups(self) -> list[object]:
        """Each once."""
        return list(dict.fromkeys(group for group, _ in self._bundles.values()))


def _remove(group: object) -> None:
    from ray.util import remove_placement_group

    remove_placement_group(group)


def _is_there(group: object) -> bool:
    from ray.util import placement_group_table

    return bool(placement_group_table(group).get("state") == "CREATED")


def _nodes_of(group: object) -> dict[int, str]:
    """By bundle, without those of dead nodes."""
    from ray.util import placement_group_table

    found: Mapping[int, object] = placement_group_table(group).get("bundles_to_node_id", {})
    return {index: str(node) for index, node in found.items() if node}


def _ask_for(bundle: dict[str, float], nodes: list[RayNode]) -> Reservation:
    """Of these nodes. Ray has no word for that, but each node has a resource with its own name, `node:ADDRESS`."""
    from ray.util import placement_group

    bundles = [{**bundle, f"node:{node.address}": A_BIT} for node in nodes]
    return Reservation([(placement_group([one], strategy="STRICT_SPREAD"), 0) for one in bundles], pinned=True)


def reserve_nodes(
    bundle: dict[str, float],
    sizes: list[int],
    *,
    wait_seconds: float,
    goes_on: Callable[[], bool],
    on_wait: Callable[[str], None],
    avoid: Collection[str] = (),
) -> Reservation | None:
    """Wait for as many nodes as there can be: the first of `sizes` for a while, then the others, and again.

    goes_on: asked while it waits; False gives up (None). on_wait: gets the reason of the wait when it changes.
    avoid: ids of nodes that are left out.
    """
    began = time.monotonic()
    reported = ""
    for size, until in _tries(sizes, wait_seconds):
        request = _Request(bundle, size, avoid)
        while (found := request.find()) is None:
            now = time.monotonic()
            if not goes_on():
                request.withdraw()
                return None
            if (
                now - began > WAIT_REPORT_SECONDS
                and (reason := shortage(bundle, sizes, other_nodes(avoid))) != reported
            ):
                on_wait(reason)
                reported = reason
            if now > until:
                break
            time.sleep(POLL_SECONDS)
        else:
            return found
        request.withdraw()
    return None


def _tries(sizes: list[int], wait_seconds: float) -> Iterator[tuple[int, float]]:
    """(nodes, end of the wait for them), for ever."""
    while True:
        if len(sizes) == 1:
            yield sizes[0], float("inf")
        else:
            yield sizes[0], time.monotonic() + wait_seconds
            for size in sizes[1:]:
                yield size, time.monotonic() + SMALLER_SECONDS


class _Request:
    """Nodes that are asked for: free ones chosen here, or, while there are too few of them, any that Ray may find."""

    def __init__(self, bundle: dict[str, float], size: int, avoid: Collection[str]) -> None:
        self._bundle = bundle
        self._size = size
        self._avoid = avoid
        self._asked_at = 0.0
        self._found: Reservation | None = None
        self._ask()

    def find(self) -> Reservation | None:
        """Returns the nodes once they are there."""
        if self._found is not None and self._found.is_there():
            return self._found
        is_late = time.monotonic() - self._asked_at > CHOICE_SECONDS
        if self._found is None or (self._found.pinned and is_late):
            self.withdraw()
            self._ask()
        return None

    def withdraw(self) -> None:
        if self._found is not None:
            self._found.give_back()
            self._found = None

    def _ask(self) -> None:
        from ray.util import placement_group

        free = _free_nodes(self._bundle, self._avoid)
        self._asked_at = time.monotonic()
        if len(free) >= self._size:
            self._found = _ask_for(self._bundle, free[: self._size])
        elif not self._avoid:
            group = placement_group([dict(self._bundle) for _ in range(self._size)], strategy="STRICT_SPREAD")
            self._found = Reservation([(group, index) for index in range(self._size)], pinned=False)


# -- nodes ----------------------------------------------------------------------------------------------------------
def cluster_nodes() -> list[RayNode]:
    """Every node that can be used."""
    leaving = draining()
    return [node for node in _living_nodes() if node.node_id not in leaving]


def _living_nodes() -> list[RayNode]:
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [
        RayNode(
            node["NodeID"],
            node["NodeManagerHostname"],
            node["NodeManagerAddress"],
            total=node["Resources"],
            free=free.get(node["NodeID"], {}),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def other_nodes(avoid: Collection[str]) -> list[RayNode]:
    """Every node that can be used but these."""
    return [node for node in cluster_nodes() if node.node_id not in avoid]


def _free_nodes(bundle: dict[str, float], avoid: Collection[str]) -> list[RayNode]:
    """Those with GPUs that nobody asks for last."""
    free = [node for node in other_nodes(avoid) if _holds(node.free, bundle)]
    return sorted(free, key=lambda node: node.total.get("GPU", 0) > 0 and "GPU" not in bundle)


def enough_without(avoid: Collection[str], bundle: dict[str, float], size: int) -> bool:
    """Returns True if so many nodes, busy or free, are large enough when these are left out."""
    return sum(_holds(node.total, bundle) for node in other_nodes(avoid)) >= size


def draining() -> dict[str, int]:
    """Nodes that are about to be taken, and the deadline: milliseconds since the epoch, 0 without a deadline."""
    from ray._private.state import state

    return dict(state.get_draining_nodes())


def reserved_nodes(reservation: Reservation) -> list[RayNode]:
    """By bundle; one that says so in the place of a node that is gone."""
    there = {node.node_id: node for node in _living_nodes()}
    return [there.get(one, RayNode(one, "a node", "which is gone", {}, {})) for one in reservation.node_ids()]


def own_address() -> str:
    """That of the node on which this process runs, as others reach it."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return next(node.address for node in _living_nodes() if node.node_id == here)


def has_room_for(bundle: dict[str, float], size: int, held: Collection[str], avoid: Collection[str]) -> bool:
    """Returns True if so many nodes could be had at once, with those that are held already."""
    return sum(node.node_id in held or _holds(node.free, bundle) for node in other_nodes(avoid)) >= size


def lost_nodes(node_ids: list[str]) -> set[str]:
    """Those of these nodes that are dead: Ray says so, or nothing listens for it there any more.

    Ray counts a node as alive until it has missed several looks at its health, for 15 to 20 seconds.
    """
    import ray

    alive = {
        node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"]) for node in ray.nodes() if node["Alive"]
    }
    counted = [one for one in node_ids if one in alive]
    with ThreadPoolExecutor(_KNOCKS) as pool:
        gone = pool.map(is_refused, [alive[one] for one in counted])
        return {*node_ids} - alive.keys() | {one for one, refused in zip(counted, gone, strict=True) if refused}


def is_refused(listener: tuple[str, int]) -> bool:
    """Returns True if the process that listened there is gone, or its machine; False for one that only is silent."""
    try:
        socket.create_connection(listener, KNOCK_SECONDS).close()
    except OSError as error:  # without an answer it may be cut off for a while: the beats of its agent tell that
        return error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH)
    return False


def shortage(bundle: dict[str, float], sizes: list[int], nodes: list[RayNode], held: Collection[str] = ()) -> str:
    """The resources asked for and those there are, in a sentence. `held`: ids of nodes that we have already."""
    least = f" (or {sizes[-1]} at least)" if len(sizes) > 1 else ""
    asked = f"it needs {_nodes(sizes[0])}{least} with {_amounts(bundle)} each"
    fit = [node for node in nodes if _holds(node.total, bundle)]
    if len(fit) < sizes[-1]:
        largest = {name: max((node.total.get(name, 0) for node in nodes), default=0) for name in bundle}
        have = f"of {_nodes(len(nodes))} here {len(fit)} {'has' if len(fit) == 1 else 'have'} that much"
        return f"{asked}; {have} (at most {_amounts(largest)}): add nodes, or ask for less"
    free = sum(node.node_id in held or _holds(node.free, bundle) for node in fit)
    ours = " or ours" if held else ""
    return f"{asked}; of {len(fit)} such nodes {free} {'is' if free == 1 else 'are'} free{ours}"


def _holds(resources: Mapping[str, float], bundle: dict[str, float]) -> bool:
    return all(resources.get(name, 0) >= amount for name, amount in bundle.items())


def _nodes(count: int) -> str:
    return f"{count} node{'s' * (count != 1)}"


def _amounts(bundle: Mapping[str, float]) -> str:
    return ", ".join(
        f"{amount / 1e9:.3g} GB memory" if name == "memory" else f"{amount:g} {name}" for name, amount in bundle.items()
    )
