"""Runs that cannot be, or cannot go on, and a controller that is away: said in our words, and nothing is left."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.slurm.runs import FOREVER, OnSite, Site

pytestmark = pytest.mark.slurm


# -- refused ---------------------------------------------------------------------------------------------------------
REFUSED = {
    "partition": ({"partition": "nowhere"}, "2", "slurm.partition of the cluster file"),
    "nodes": ({}, "9", "Requested node configuration is not available (see --nodes, and node of"),
    "feature": ({"constraint": "h100"}, "2", "slurm.constraint of the cluster file"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_slurm_refuses_leaves_nothing(what: str, place: Site) -> None:
    slurm, nodes, said = REFUSED[what]
    place.write_cluster(**slurm)
    url = str(place.here / "runs/run")
    before = place.files()
    words = ("tiny.yaml", "--cluster", "site", "--nodes", nodes, "--run-url", url)
    told = place.ok(*words, "train.global_batch_size=72", code=2)
    assert "SLURM refuses the job" in told
    assert said in told
    made = [name for name in place.files() - before if (place.root / name).is_file()]
    assert not [name for name in made if not name.startswith("cache/")], "the cache keeps the code for the next launch"
    assert "no runs yet" in place.ok("status")
    assert not place.cluster.run("squeue", "--noheader").strip()


def test_a_limit_above_the_partitions_is_told(place: Site) -> None:
    """sbatch takes such a job at most sites, and it waits for ever."""
    run = place.launch("run", FOREVER, "resources.time_limit=3-00:00:00")
    run.wait(lambda: "above the partition's" in (run.status()["queue"] or ""), 20)
    place.ok("cancel", run.run_id)


# -- fails -----------------------------------------------------------------------------------------------------------
def ended(run: OnSite) -> str:
    """It failed, SLURM knows it, and nothing starts it again; `why`."""
    record = run.outcome()
    assert record.outcome == "failed"
    assert run.cluster.job(run.job)["Restarts"] == "0"
    run.nothing_left()
    return run.why()


def test_an_error_that_comes_back_ends_the_run(place: Site) -> None:
    """max_failures attempts inside the allocation, and the cause with its rank."""
    place.write_cluster(environment={"GLOO_SOCKET_IFNAME": "nothing0"})
    run = place.launch("run", "train.max_steps=50")
    said = ended(run)
    assert run.run.attempts() == [0, 1]
    assert "rank " in said
    assert "nothing0" in said
    assert "1 earlier attempt failed" in said


def test_a_loss_that_is_not_finite_is_not_tried_again(place: Site) -> None:
    run = place.launch("run", "optimizer.lr=1e30", "train.max_grad_norm=1e30", "schedule.warmup_steps=0")
    said = ended(run)
    assert run.run.attempts() == [0]
    assert "rank" in said
    assert "Trying again unchanged would end the same way" in said


def test_a_script_that_cannot_begin_says_so(place: Site) -> None:
    """A command of the cluster file's setup fails: no attempt, and why names the command and its message."""
    import yaml

    path = Path(place.env["XDG_CONFIG_HOME"]) / "launchyard/clusters/site.yaml"
    cluster = yaml.safe_load(path.read_text())
    path.write_text(
        yaml.safe_dump(
            {
                **cluster,
                "setup": [
                    "module() { echo 'Lmod has detected an Error: no cuda'; return 1; }",
                    "module load cuda",
                    "true",
                ],
            }
        )
    )
    run = place.launch("run", FOREVER)
    run.wait(lambda: run.status()["state"] == "failed", 30)
    assert "before anything of the run had begun" in run.why()
    assert (
        "ended with status 1 at: module load cuda, with the message: Lmod has detected an Error: no cuda" in run.why()
    )


# -- the controller is away ------------------------------------------------------------------------------------------
def test_a_run_does_not_need_the_controller(place: Site) -> None:
    run = place.launch("run", FOREVER)
    run.steps(5)
    run.cluster.stop_controller()
    try:
        began = time.monotonic()
        state = run.status()
        assert time.monotonic() - began < 14  # 9 are SLURM's own
        assert (state["state"], state["alive"]) == ("running", True)
        assert state["queue"] == "SLURM's controller does not answer"
        before = run.step(0)
        run.wait(lambda: run.step(0) > before + 5, 20)
        assert "does not answer" in run.why()
    finally:
        run.cluster.start_controller()
    run.wait(lambda: run.status()["queue"] is None, 30)
    place.ok("stop", run.run_id)
    run.nothing_left()
    assert run.status()["state"] == "stopped"
