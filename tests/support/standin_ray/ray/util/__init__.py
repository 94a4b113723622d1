"""Placement groups: there as soon as so many nodes are free."""

from __future__ import annotations

from typing import Any

import ray  # noqa: TID253 - the stand-in
from ray._private.state import available_resources_per_node, state  # noqa: TID253


class _Group:
    def __init__(self, bundles: list[dict[str, float]]) -> None:
        self.bundles, self.node_ids = bundles, list[str]()

    def place(self) -> bool:
        if not self.node_ids:
            free, leaving = available_resources_per_node(), state.get_draining_nodes()
            alive = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
            chosen = list[str]()
            for bundle in self.bundles:
                fit = (one for one in alive if all(free[one].get(key, 0) >= n for key, n in bundle.items()))
                chosen += [one for one in fit if one not in chosen][:1]
            self.node_ids = chosen if len(chosen) == len(self.bundles) else []
        return bool(self.node_ids)


def placement_group(bundles: list[dict[str, float]], *, strategy: str) -> _Group:
    assert strategy == "STRICT_SPREAD"
    return _Group(bundles)


def placement_group_table(group: _Group) -> dict[str, Any]:
    there = group.place()
    return {"state": "CREATED" if there else "PENDING", "bundles_to_node_id": dict(enumerate(group.node_ids))}


def remove_placement_group(group: _Group) -> None:
    with open(ray.FOLDER / "given_back", "a") as file:
        file.writelines(f"{node_id}\n" for node_id in group.node_ids)
