"""What Ray's dashboard says, and what is made of it; every answer is one that Ray 2.60 gives."""

from __future__ import annotations

import time

import pytest

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.backends.ray import client
from launchyard.launcher.backends.ray.client import AwayError, Dashboard
from tests.support.fake_ray import FakeRay


@pytest.fixture
def ray(cluster: FakeRay) -> Dashboard:
    return Dashboard(f"{cluster.address}/")


def submit(ray: Dashboard, entrypoint: str, job_id: str = "j-1") -> str:
    return ray.submit({"entrypoint": entrypoint, "submission_id": job_id, "runtime_env": {}})


ENDS = {"exit 0": "SUCCEEDED", "echo no such thing; exit 3": "FAILED"}


@pytest.mark.parametrize("entrypoint", ENDS)
def test_a_job_to_its_end(entrypoint: str, cluster: FakeRay, ray: Dashboard) -> None:
    cluster.hold = True
    job = submit(ray, entrypoint)
    seen = ray.ask(job)
    assert (seen.state, seen.scheduler_state) == ("queued", "PENDING")
    assert seen.reason.startswith("Job has not started yet")
    assert not ray.wait_gone(job, seconds=0.0)
    cluster.start(job)
    assert ray.wait_gone(job, seconds=20)
    seen = ray.ask(job)
    assert (seen.state, seen.scheduler_state, seen.reason) == ("gone", ENDS[entrypoint], "")
    assert ray.logs(job) == ("no such thing\n" if "echo" in entrypoint else "")


def test_a_job_that_is_stopped(cluster: FakeRay, ray: Dashboard) -> None:
    job = submit(ray, "exec sleep 60")
    assert ray.ask(job).state == "running"
    ray.stop(job)
    assert ray.wait_gone(job, seconds=20)
    assert ray.ask(job).scheduler_state == "STOPPED"
    ray.stop(job)
    ray.stop("nothing")


def test_a_name_is_taken_once(cluster: FakeRay, ray: Dashboard) -> None:
    submit(ray, "exit 0")
    with pytest.raises(UserError, match=r"Job with submission_id j-1 already exists"):
        submit(ray, "exit 0")


def test_code_is_sent_once(cluster: FakeRay, ray: Dashboard) -> None:
    assert ray.upload("a.zip", b"\0\1") == ray.upload("a.zip", b"\0\1") == "gcs://a.zip"
    assert cluster.packages == {"a.zip": b"\0\1"}
    cluster.replies["PUT /api/packages/gcs/b.zip"] = 500, "Traceback\nRuntimeError: package is larger than 512MiB\n"
    with pytest.raises(LaunchError, match="does not take our code: RuntimeError: package is larger"):
        ray.upload("b.zip", b"x")


def test_a_slow_answer_is_not_waited_for(cluster: FakeRay, ray: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.2)
    cluster.delay = 1.0
    began = time.monotonic()
    assert ray.ask("j").state == "unknown"
    with pytest.raises(AwayError, match="timed out"):
        ray.version()
    assert time.monotonic() - began < 5


def test_what_nobody_knows(cluster: FakeRay, ray: Dashboard) -> None:
    assert ray.ask("j").state == "gone"
    assert ray.logs("j") == ""
    assert [node["hostname"] for node in ray.nodes()] == ["host0", "host1"]
    cluster.away()
    assert ray.logs("j") == ""
    with pytest.raises(AwayError):
        ray.stop("j")


def test_nobody_behind_https() -> None:
    with pytest.raises(AwayError, match=r"https://127\.0\.0\.1:9"):
        Dashboard("https://127.0.0.1:9").version()
