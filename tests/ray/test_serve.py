"""`launch serve --cluster` on a real Ray: it listens on a node, and ends as `ray job stop` ends it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.model.serve.served import chat_model

if TYPE_CHECKING:
    from tests.ray.runs import Site

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def test_a_server_on_a_node(place: Site) -> None:
    model = chat_model(place.here / "tiny")
    said = place.ok("serve", str(model), "--cluster", "site", code=2)
    assert "can be asked by everyone on its network" in said and "--api-keys FILE" in said
    keys = place.here / "keys"
    keys.write_text("one\n")
    words = ("serve", str(model), "--cluster", "site", "--api-keys", str(keys), "--json")
    facts = json.loads(place.ok(*words, timeout=200).splitlines()[-1])
    assert facts["url"].startswith("http://") and facts["model"] == "tiny"
    ray = place.cluster.site.dashboard
    assert ray.ask(facts["job_id"]).state == "running"
    ray.stop(facts["job_id"])
    assert ray.wait_gone(facts["job_id"], seconds=60)
    assert "one" not in ray.logs(facts["job_id"])
