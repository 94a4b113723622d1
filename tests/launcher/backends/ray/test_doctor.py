"""`launch doctor` on Ray: what a cluster says of itself, and what that means for a run."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.support.fake_ray import VERSION, FakeRay
from tests.support.typed import Place


def test_a_cluster_in_order(cluster: FakeRay, place: Place) -> None:
    found = place.findings("--no-job")
    assert found["Ray"]["found"] == "2.60.0"
    assert found["nodes"]["found"] == "2 alive, 2 of them with 2 CPU or more"
    assert cluster.jobs == {}, "looking submits nothing"


def test_from_a_node(cluster: FakeRay, place: Place) -> None:
    """A short job finds the storage and the ports there; nothing stays."""
    found = place.findings()
    assert found["node"]["level"] == "ok", found["node"]
    assert (found["storage from a node"]["level"], found["ports"]["level"]) == ("ok", "ok")
    assert [job.status for job in cluster.jobs.values()] == ["SUCCEEDED"]
    assert place.files() == {"tiny.yaml", "runs"} | {name for name in place.files() if name.startswith("tokens")}


OLD = json.dumps({**VERSION, "ray_version": "2.9.3"})
SITES: dict[str, tuple[Callable[[FakeRay], object], str, str, str]] = {
    "old": (lambda r: r.replies.update({"GET /api/version": (200, OLD)}), "Ray", "warning", "not tried with this"),
    "small": (lambda r: r.nodes(3, cpus=1.0), "nodes", "error", "3 alive, 0 of them with 2 CPU or more"),
    "dead": (lambda r: r.nodes(3, dead=(1, 2)), "nodes", "ok", "1 alive, 1 of them"),
    "away": (lambda r: r.away(), "Ray", "error", "no Ray dashboard answers"),
    "token": (lambda r: r.replies.update({"GET /api/version": (401, "no")}), "Ray", "error", "let us in (401)"),
    "refuses": (lambda r: r.replies.update({"POST /api/jobs/": (500, "No available agent")}), "node", "error", "agent"),
    "no room for code": (
        lambda r: r.replies.update({"POST /api/jobs/": (400, "ValueError: bad env")}), "node", "error", "bad env",
    ),
}  # fmt: skip


@pytest.mark.parametrize("site", SITES)
def test_clusters_otherwise(site: str, cluster: FakeRay, place: Place) -> None:
    change, what, level, said = SITES[site]
    change(cluster)
    found = place.findings(*([] if what == "node" else ["--no-job"]), code=1 if level == "error" else 0)
    assert (found[what]["level"], said in found[what]["found"]) == (level, True), found[what]
    assert level == "ok" or found[what]["cure"]


def test_a_python_that_is_not_on_the_nodes(cluster: FakeRay, place: Place) -> None:
    place.write_cluster(ray={"address": cluster.address, "python": "/no/such/python"})
    found = place.findings(code=1)["node"]
    assert "/no/such/python" in found["found"] and "ray.python" in found["cure"]


def test_without_an_address(cluster: FakeRay, place: Place) -> None:
    place.write_cluster(ray={})
    assert "the first run starts a Ray of this machine" in place.findings("--no-job")["Ray"]["found"]
