"""`launch serve --cluster` on a real SLURM: it listens on a node, asks for its key, and ends with its job."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.model.serve.served import chat_model

if TYPE_CHECKING:
    from tests.slurm.runs import Site

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]


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
    assert found.json()["usage"]["completion_tokens"] == 5
    place.cluster.run("scancel", facts["job_id"])
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            httpx.get(f"{url}/health", timeout=1)
        except httpx.HTTPError:
            return
        time.sleep(0.2)
    raise AssertionError("the server outlived its job")


def test_a_server_that_cannot_begin_says_why(place: Site) -> None:
    model = chat_model(place.here / "tiny")
    (model / "tokenizer.json").unlink()
    said = place.ok("serve", str(model), "--cluster", "site", code=1, timeout=200)
    assert "ended before it listened" in said and "no tokenizer in" in said
