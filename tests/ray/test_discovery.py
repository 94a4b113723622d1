"""`launch monitor` and a run on Ray: its workers are found on their nodes, it is gone when it is over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.ray.runs import FOREVER, OnRay, Site

pytestmark = pytest.mark.ray


def groups(run: OnRay) -> list[dict[str, Any]]:
    return list(json.loads(run.site.ok("monitor", "--json")))


def test_workers_are_found_on_their_nodes_and_gone_with_the_run(place: Site) -> None:
    run = place.launch("run", FOREVER, "metrics.prometheus=true")
    run.steps(3)
    found = groups(run)
    assert len(found) == 2, "one group a node"
    for group in found:
        assert {key: group["labels"][key] for key in ("cluster", "run_id", "attempt")} == {
            "cluster": "site", "run_id": run.run_id, "attempt": "0",
        }  # fmt: skip
        assert len(group["targets"]) == 1
    place.ok("stop", run.run_id)
    assert groups(run) == []
    assert "stopped" in place.ok("monitor", "--once")
