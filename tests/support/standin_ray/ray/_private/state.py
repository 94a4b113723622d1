"""Which resources are free, and which nodes are about to be taken (drains.json: id -> milliseconds)."""

from __future__ import annotations

import json
from typing import Any

import ray  # noqa: TID253 - the stand-in


def available_resources_per_node() -> dict[str, Any]:
    return {node["NodeID"]: node.get("Free", node["Resources"]) for node in ray.nodes()}


class _State:
    def get_draining_nodes(self) -> dict[str, int]:
        path = ray.FOLDER / "drains.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}


state = _State()
