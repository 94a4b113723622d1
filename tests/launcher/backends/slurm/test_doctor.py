"""`launch doctor` on SLURM: what a site says of itself, and what that means for a run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.fake_slurm import AWAY, FakeSlurm
from tests.support.typed import Place


def test_a_site_in_order(slurm: FakeSlurm, place: Place) -> None:
    found = place.findings("--no-job")
    assert {one["level"] for one in found.values()} <= {"ok", "warning"}
    assert found["SLURM"]["found"] == "22.05.8"
    assert found["partition"]["found"].startswith("spot · 4 nodes · at most 1-00:00:00 an attempt")
    assert "started again as the same job" in found["requeue"]["found"]
    assert "GraceTime 4 s + KillWait 30 s when preempted, 10 s before" in found["time to save"]["found"]
    assert found["job"]["found"].startswith("Job 999 to start at")
    assert slurm.jobs() == [], "looking submits nothing"


def test_from_a_node(slurm: FakeSlurm, place: Place) -> None:
    """A short job finds the code, the storage and the ports there; nothing stays."""
    before = place.files()
    found = place.findings()
    assert found["node"]["level"] == "ok", found["node"]
    assert found["storage from a node"]["level"] == "ok"
    assert found["ports"]["level"] == "ok"
    (asked,) = slurm.asked("srun")
    assert {"--partition=spot", "--time=2", "--immediate=60"} < set(asked)
    assert place.files() - before <= {"runs"}


SITES: dict[str, tuple[Callable[[FakeSlurm], object], str, str, str]] = {
    "no requeue": (lambda s: s.configure(JobRequeue="0"), "requeue", "ok", "goes on as a new job"),
    "cancels": (lambda s: s.partition("spot", PreemptMode="CANCEL"), "preemption", "warning", "SLURM cancels"),
    "down": (lambda s: s.partition("spot", State="DOWN"), "partition", "error", "DOWN"),
    "refuses": (lambda s: s.fail("sbatch", stderr="sbatch: error: Invalid qos specification"), "job", "error", "qos"),
    "silent job": (lambda s: s.fail("sbatch", stderr=""), "job", "error", ""),
    "away": (lambda s: s.controller_away(), "SLURM", "error", "the controller does not answer"),
    "no node": (
        lambda s: s.fail("srun", stderr="srun: error: Unable to allocate resources: Requested nodes are busy"),
        "node", "error", "Requested nodes are busy",
    ),
    "no controller for the step": (lambda s: s.fail("srun", stderr=f"srun: error: {AWAY}"), "node", "error", AWAY),
}  # fmt: skip


@pytest.mark.parametrize("site", SITES)
def test_sites_otherwise(site: str, slurm: FakeSlurm, place: Place) -> None:
    change, what, level, said = SITES[site]
    change(slurm)
    found = place.findings(*([] if what == "node" else ["--no-job"]), code=1 if level == "error" else 0)
    assert (found[what]["level"], said in found[what]["found"]) == (level, True), found[what]
    assert level == "ok" or found[what]["cure"]


def test_a_partition_that_is_not_there(slurm: FakeSlurm, place: Place) -> None:
    place.write_cluster(slurm={"partition": "nowhere"})
    found = place.findings("--no-job", code=1)["partition"]
    assert found["found"] == "there is no partition nowhere"
    assert "batch, prod, spot" in found["cure"]


def test_without_a_name_it_is_the_sites_default(slurm: FakeSlurm, place: Place) -> None:
    place.write_cluster(slurm={})
    assert place.findings("--no-job")["partition"]["found"].startswith("batch ·")


def test_where_there_is_no_slurm(slurm: FakeSlurm, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = place.findings("--no-job", code=1)["SLURM"]
    assert found["found"] == "sbatch, srun, squeue, scontrol not found here"
