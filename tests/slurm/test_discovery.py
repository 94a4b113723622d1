"""What a job on SLURM says of where it can be reached: metrics of runs, and servers."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.model.serve.served import chat_model
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


# -- servers ---
@pytest.mark.timeout(240)
def test_a_server_on_a_node(place: Site) -> None:
    model = chat_model(place.here / "tiny")
    text = place.ok("serve", str(model), "--cluster", "site", "--dry-run", "--time-limit", "10:00")
    assert "#SBATCH --time=10:00" in text and "launchyard serve" in text and "--requeue" not in text
    facts = json.loads(place.ok("serve", str(model), "--cluster", "site", "--json", timeout=200).splitlines()[-1])
    assert facts["end_with"] == f"scancel {facts['job_id']}"
    key = Path(facts["key_file"])
    assert key.stat().st_mode & 0o077 == 0
    url = f"http://127.0.0.1:{facts['url'].rpartition(':')[2]}"  # all nodes of this cluster are this machine
    assert httpx.get(f"{url}/v1/models").status_code == 401
    asked = {"prompt": "the tale", "max_tokens": 5}
    allowed = {"Authorization": f"Bearer {key.read_text().strip()}"}
    found = httpx.post(f"{url}/v1/completions", json=asked, headers=allowed)
    assert 1 <= found.json()["usage"]["completion_tokens"] <= 5  # drawn; its end may come before
    place.cluster.run("scancel", facts["job_id"])
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            httpx.get(f"{url}/health", timeout=1)
        except httpx.HTTPError:
            return
        time.sleep(0.2)
    raise AssertionError("the server outlived its job")


@pytest.mark.timeout(240)
def test_a_server_that_cannot_begin_says_why(place: Site) -> None:
    model = chat_model(place.here / "tiny")
    (model / "tokenizer.json").unlink()
    said = place.ok("serve", str(model), "--cluster", "site", code=1, timeout=200)
    assert "ended before it listened" in said and "no tokenizer in" in said
