"""Runs whose everything is in S3: a login node and nodes that share no disk but for the code."""

from __future__ import annotations

import pytest

from tests.slurm.runs import Site, kill, same_training
from tests.support.store import Bucket

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
STEPS = "train.max_steps=400"  # rows come later out of a store; long enough to be hit all the same


def move_to(place: Site, s3: Bucket) -> None:
    """The cluster file says where and with which keys; no variable of the person who types does."""
    keys = place.here / "keys"
    keys.write_text(f"[site]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n")
    keys.chmod(0o600)
    place.env = {name: value for name, value in place.env.items() if not name.startswith("AWS_")}
    place.runs = f"{s3.url}/runs"
    reached = {"endpoint_url": s3.endpoint, "region": s3.environment["AWS_REGION"]}
    place.write_cluster(storage={**reached, "profile": "site", "credentials_file": str(keys)})


@pytest.mark.timeout(300)
def test_a_run_in_a_store_survives_too(place: Site, s3: Bucket) -> None:
    """A notice, then a killed worker: bit for bit as on one machine and its disk, and no key was written anywhere."""
    undisturbed = place.undisturbed("quiet", STEPS)
    move_to(place, s3)
    run = place.launch("run", STEPS)
    run.steps(5)
    run.cluster.run("scancel", "--signal=USR1", str(run.job))
    run.steps(5, attempt=1)
    kill(run.workers(1)[1])
    record = run.outcome()
    assert record.outcome == "completed", record
    assert run.run.attempts() == [0, 1, 2]
    assert run.run.outcome(0).reason == "preempted" and run.run.outcome(1).reason == "killed"
    run.nothing_left()
    same_training(run.run, undisturbed)
    assert "killed" in run.why()
    written = [s3.get(name) for name in s3.objects()]
    written += [path.read_bytes() for path in place.root.rglob("*") if path.is_file() and path.name != "keys"]
    assert written and not any(s3.secret_key.encode() in raw for raw in written)
