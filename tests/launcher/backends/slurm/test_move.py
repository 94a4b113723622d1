"""A run goes on in another cluster than the one it began in: `launch resume --cluster`."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from launchyard.launcher.submit.resume import make_ready
from launchyard.run.rundir import RunDir
from launchyard.storage import files, retry
from launchyard.training.spec import read_workload
from tests.launcher.backends.slurm.test_runs import started
from tests.support.fake_slurm import FakeSlurm
from tests.support.typed import Launched, Place


def another(place: Place, slurm: FakeSlurm, **changes: Any) -> None:
    """A cluster file `other`: another scheduler's environment, the same folder of runs."""
    environment = {"SLURM_CONF": slurm.env["SLURM_CONF"], "SITE": "other"}
    storage = {"url": str(place.runs), "retry_minutes": 1}
    cluster = {"name": "other", "scheduler": "slurm", "node": {"cpus": 4}, "environment": environment}
    file = place.clusters / "other.yaml"
    file.write_text(yaml.safe_dump({**cluster, "storage": storage, "slurm": {"partition": "spot"}, **changes}))


def taken_back(place: Place, slurm: FakeSlurm) -> Launched:
    """A run that waited in the queue of `site`, and does not any more."""
    slurm.hold("Priority")
    run = place.launch()
    place.ok("stop", run.run_id)
    slurm.hold(None)
    return run


def test_a_run_moves_and_stays(slurm: FakeSlurm, place: Place) -> None:
    """With the storage and the environment of the other cluster; later resumes go there without a word."""
    place.workers_do(steps=3)
    run = taken_back(place, slurm)
    another(place, slurm)
    said = place.ok("resume", run.run_id, "--cluster", "other", "--dry-run")
    assert f"✓ place    other (slurm); its nodes must see {run.run.url}" in said
    assert not run.run.exists("place.json")
    place.ok("resume", run.run_id, "--cluster", "other", "--json")
    assert run.outcome().outcome == "completed"
    newest = run.run.newest_submission()
    assert newest is not None and newest.env["SITE"] == "other"
    assert read_workload(run.run).storage.retry_seconds == 60
    run.wait(lambda: run.status()["state"] == "completed" and slurm.job(run.job)["state"] == "COMPLETED")
    assert make_ready(run.run, {"train.max_steps": 2000}).plan.cluster == "other"


def test_a_refused_move_leaves_the_run_where_it_was(slurm: FakeSlurm, place: Place) -> None:
    run = taken_back(place, slurm)
    another(place, slurm)
    slurm.fail("sbatch", stderr="sbatch: error: Batch job submission failed: Job violates accounting/QOS policy")
    assert "QOS" in place.ok("resume", run.run_id, "--cluster", "other", code=2)
    assert not run.run.exists("place.json")
    assert make_ready(run.run, {}).plan.cluster == "site"


def test_a_storage_that_is_not_there(slurm: FakeSlurm, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = taken_back(place, slurm)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    another(place, slurm, storage={"url": "s3://bucket/runs", "endpoint_url": "http://127.0.0.1:9"})
    retry.set_retry_budget(0)
    said = place.ok("resume", run.run_id, "--cluster", "other", code=2)
    assert f"--cluster other: s3://bucket/runs/{run.run_id} is not reached with its storage" in said
    assert run.run.attempts() == []


def test_a_copy_whose_job_is_refused_is_taken_back(slurm: FakeSlurm, place: Place) -> None:
    run = taken_back(place, slurm)
    another(place, slurm, storage="memory://elsewhere")
    slurm.fail("sbatch", stderr="sbatch: error: Batch job submission failed: Job violates accounting/QOS policy")
    assert "QOS" in place.ok("resume", run.run_id, "--cluster", "other", code=2)
    assert files.listdir(f"memory://elsewhere/{run.run_id}") == []
    assert not run.run.exists("moved.json")
    assert run.status()["url"] == run.run.url, "and its id means the folder"
    assert make_ready(run.run, {}).plan.cluster == "site"


@pytest.mark.slow  # its first attempt is real
def test_from_this_machine_to_slurm(slurm: FakeSlurm, place: Place) -> None:
    url = str(place.runs / "here")
    place.ok("tiny.yaml", "--local", "--run-url", url, "train.max_steps=3", "--follow")
    run = Launched(place, RunDir(url), RunDir(url).read_plan()["run_id"])
    place.workers_do(steps=6)
    place.ok("resume", run.run_id, "--cluster", "site", "train.max_steps=6")
    run.wait(lambda: (record := run.run.outcome()) and record.attempt == 1)
    assert [run.run.job(attempt).backend for attempt in (0, 1)] == ["local", "slurm"]
    assert started(run, 1) == 3
    assert run.status()["state"] == "completed"
