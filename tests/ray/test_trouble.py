"""Ray that is not there, refuses, or is somebody else's: said in our words, and nothing is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.ray.cluster import RayCluster
from tests.ray.runs import FOREVER, Site

pytestmark = pytest.mark.ray
WRONG = {
    "nobody there": ("http://127.0.0.1:9", "no Ray dashboard answers at http://127.0.0.1:9"),
    "no such socket": ("unix:///tmp/no-such.sock", "no Ray dashboard answers at unix:///tmp/no-such.sock"),
    "no such host": ("http://no-such-host.invalid:8265", "no Ray dashboard answers"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_address_is_one_clear_error(what: str, place: Site) -> None:
    address, said = WRONG[what]
    place.write_cluster(address=address)
    url, before = str(place.here / "runs/run"), place.files()
    began = time.monotonic()
    told = place.ok("tiny.yaml", "--cluster", "site", "--nodes", "2", "--run-url", url, code=2)
    assert time.monotonic() - began < 15
    assert said in told
    assert told.count("error:") == 1
    assert not [name for name in place.files() - before if (place.root / name).is_file()]
    assert "no runs yet" in place.ok("status")


def test_a_job_that_cannot_begin_says_so(place: Site) -> None:
    """Ray takes it, and it ends before anything of the run: why tells what it printed."""
    place.write_cluster(python="/no/such/python")
    run = place.launch("run", FOREVER)
    run.wait(lambda: run.status()["state"] == "failed", 60)
    said = run.why()
    assert "before anything of the run had begun" in said
    assert "/no/such/python: not found" in said


@pytest.mark.slow
def test_a_dashboard_that_is_away(place: Site) -> None:
    """The run goes on and is shown by what its directory tells."""
    from launchyard.launcher.sandbox.ray.site import NETWORK

    run = place.launch("run", FOREVER)
    run.steps(5)
    pid = run.cluster.site.pid(NETWORK)
    assert pid is not None
    relay = psutil.Process(pid)
    relay.suspend()
    try:
        state = run.status()
        assert (state["state"], state["alive"]) == ("running", True)
        assert "no Ray dashboard answers" in state["queue"]
    finally:
        relay.resume()
    run.wait(lambda: run.status()["queue"] is None, 30)
    place.ok("stop", run.run_id)
    run.nothing_left()


@pytest.fixture
def broken_node(cluster: RayCluster) -> Iterator[str]:
    """A node whose agent cannot unpack a runtime environment: a file is where the folder should be."""
    (unpacked,) = (Path(str(cluster.site.temporary)) / "node3").glob("session_2*/runtime_resources/working_dir_files")
    kept = unpacked.with_name("kept")
    unpacked.rename(kept)
    unpacked.touch()
    yield "node3"
    unpacked.unlink()
    kept.rename(unpacked)


def test_a_node_that_cannot_make_the_environment_is_left_out(place: Site, broken_node: str) -> None:
    batch = ("train.global_batch_size=12", "resources.min_nodes=3", "resources.max_failures=0")
    run = place.launch("run", FOREVER, *batch, nodes=4)
    run.steps(2, attempt=1)
    record = run.run.outcome(0)
    assert record is not None and record.reason == "bad node"
    assert f"{broken_node} (" in record.message and "cannot start node" in record.message
    assert broken_node not in [run.node(rank, attempt=1) for rank in range(3)]
    assert [node.host for node in run.run.bad_nodes()] == [broken_node]
    place.ok("stop", run.run_id)
    run.nothing_left()
