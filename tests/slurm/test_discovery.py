"""`launch monitor` and a run on SLURM: its workers are found on their nodes, it is gone when it is over."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from tests.slurm.runs import FOREVER, OnSite, Site

pytestmark = pytest.mark.slurm


def groups(run: OnSite) -> list[dict[str, Any]]:
    return list(json.loads(run.site.ok("monitor", "--json")))


def test_workers_are_found_on_their_nodes_and_gone_with_the_run(place: Site) -> None:
    run = place.launch("run", FOREVER, "metrics.prometheus=true")
    run.steps(3)
    found = groups(run)
    assert [group["labels"]["node"] for group in found] == ["node1", "node2"]
    for group in found:
        assert {key: group["labels"][key] for key in ("cluster", "run_id", "attempt")} == {
            "cluster": "site", "run_id": run.run_id, "attempt": "0",
        }  # fmt: skip
        (target,) = group["targets"]
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
            assert "trainer_phase_seconds_total" in answer.read().decode()
    place.ok("stop", run.run_id)
    assert groups(run) == []
    assert "stopped" in place.ok("monitor", "--once")
