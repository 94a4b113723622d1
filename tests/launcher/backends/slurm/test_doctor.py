"""`launch doctor` on SLURM: what a site says of itself, and what that means for a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launchyard.launcher.backends.slurm.doctor import _commands, _home
from launchyard.launcher.backends.slurm.nodes import gpus_in
from launchyard.launcher.doctor.node_probe import probe
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
    assert found["commands on a node"]["level"] == "ok"
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


# Keys of `node` -> CPUs that are asked for: of a node with 8 and 2 GPUs, 2 of whose CPUs the site keeps for itself.
CPUS = {"all GPUs": ({"gpus": 2}, 6), "some GPUs": ({"gpus": 1}, 3), "no GPUs": ({}, 6), "told": ({"cpus": 2}, 2)}


@pytest.mark.parametrize("node", CPUS)
def test_cpus_are_those_of_the_nodes(node: str, slurm: FakeSlurm, place: Place) -> None:
    """One task a node would get one core at most sites, for all its workers."""
    keys, cpus = CPUS[node]
    place.write_cluster(node=keys)
    device = f"train.device={'cuda' if keys.get('gpus') else 'cpu'}"
    said = place.ok("tiny.yaml", "--cluster", "site", "--dry-run", device)
    assert f"--cpus-per-task={cpus}" in said
    found = place.findings("--no-job")
    assert (f"{cpus} are asked for, by what the nodes have" in said) == ("CPUs" in found) == ("cpus" not in keys)
    assert "cpus" in keys or (found["CPUs"]["level"], found["CPUs"]["cure"][:12]) == ("warning", f"node.cpus: {cpus}")


def test_a_plan_made_where_slurm_cannot_be_asked_warns(slurm: FakeSlurm, place: Place) -> None:
    place.write_cluster(node={})
    slurm.fail("sinfo", stderr=AWAY)
    said = place.ok("tiny.yaml", "--cluster", "site", "--dry-run")
    assert "--cpus-per-task" not in said
    assert "most sites then give all workers of a node one core" in said


def test_a_home_that_nodes_do_not_share_is_named_beforehand(tmp_path: Path) -> None:
    """As a node sees it: only what is there."""
    (tmp_path / "token").write_text("token")
    home = str(tmp_path / "home/state")
    seen = probe(str(tmp_path), "token", ["sh", home])
    assert (seen["missing"], seen["storage"]) == ([home], "")
    (found,) = _home("node1", seen["missing"])
    assert (found.level, home in found.found, "XDG_STATE_HOME" in found.fix) == ("error", True, True)
    assert probe(str(tmp_path), "token", [str(tmp_path)])["missing"] == []


def test_commands_that_nodes_lack_are_named_beforehand() -> None:
    (fine,) = _commands("node1", [])
    (some,) = _commands("node1", ["scontrol"])
    (none,) = _commands("node1", ["scontrol", "squeue", "sbatch"])
    assert [one.level for one in (fine, some, none)] == ["ok", "warning", "warning"]
    assert "as a new job" in some.found and "cannot put itself back" in none.found and none.fix


def test_gpus_of_a_node() -> None:
    shown = {"gpu:2": 2, "gpu:h100:8(S:0-1)": 8, "gpu:a:2,gpu:b:2,nvme:1": 4, "(null)": 0, "": 0, "mygpu:3": 0}
    assert {gres: gpus_in(gres) for gres in shown} == shown


def test_where_there_is_no_slurm(slurm: FakeSlurm, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = place.findings("--no-job", code=1)["SLURM"]
    assert found["found"] == "sbatch, srun, squeue, scontrol not found here"
