"""The manifest's own command lines, started as KubeRay and a kubelet would: a real Ray in pods, runs in a real S3.

Kubernetes itself is not there: what it makes of the manifest is tests/ray/kuberay/{operator,pods}.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchyard.host.processes import python_argv
from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from launchyard.storage.options import StoreOptions
from tests.ray.kuberay.operator import pods_of, submit_script
from tests.ray.kuberay.pods import HOST, ROOT, Pods, address_of, network_of_pods, why_no_pods
from tests.slurm.runs import FOREVER, RECIPE, same_training
from tests.support.shell import Shell
from tests.support.small_runs import write_data
from tests.support.store import Bucket

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = 300
SECRET = "store-keys"
S3_PORT = 8333


class Laptop(Shell):
    """A person with kubectl: a recipe, a cluster file, keys of the store in the shell, and a way to the pods."""

    def __init__(self, root: Path, pods: Pods, bucket: Bucket) -> None:
        super().__init__(root)
        self.pods, self.bucket = pods, bucket
        keys = {"AWS_ACCESS_KEY_ID": bucket.access_key, "AWS_SECRET_ACCESS_KEY": bucket.secret_key}
        self.env = {name: value for name, value in self.env.items() if not name.startswith("AWS_")} | keys
        self.env |= {"PYTHONPATH": str(ROOT / "src"), "AWS_EC2_METADATA_DISABLED": "true"}
        write_data(self.here / "tokens", 40_000)
        for path in (self.here / "tokens").rglob("*.*"):
            files.write(f"{bucket.url}/tokens/{path.relative_to(self.here / 'tokens')}", path.read_bytes())
        recipe = {**RECIPE, "data": {**RECIPE["data"], "source": f"{bucket.url}/tokens/train"}}
        recipe["schedule"] = {**recipe["schedule"], "name": "constant"}  # the same for every length
        recipe["train"] = {**recipe["train"], "max_steps": STEPS, "global_batch_size": 12}
        (self.here / "tiny.yaml").write_text(yaml.safe_dump(recipe))
        cluster = {
            "name": "site",
            "scheduler": "ray",
            "node": {"cpus": 1, "memory": "2GiB"},
            "storage": {"url": f"{bucket.url}/runs", "endpoint_url": f"http://{HOST}:{S3_PORT}", "region": "us-east-1"},
            "environment": {"OMP_NUM_THREADS": "1"},
            "ray": {
                "address": f"http://{address_of(0)}:8265",
                "kubernetes": {
                    "image": "launchyard:ray",
                    "secrets": [SECRET],
                    "grace_seconds": 120,
                    "head_memory": "2GiB",
                },
            },
        }
        (self.here / "site.yaml").write_text(yaml.safe_dump(cluster))

    def __call__(self, *words: str, timeout: float = 200, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.pods.inside(), *python_argv(sys.executable), "-m", "launchyard", *words],
            cwd=self.here, env={**self.env, **env}, capture_output=True, text=True, timeout=timeout,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def ok(self, *words: str, timeout: float = 200) -> str:
        done = self(*words, timeout=timeout)
        assert done.returncode == 0, f"launch {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def manifest(self, form: str, *words: str, nodes: int) -> str:
        here = ("tiny.yaml", "--cluster", "./site.yaml", "--nodes", str(nodes), *words)
        return self.ok(*here, "--dry-run", "--output", form)

    def status(self, run: str) -> dict[str, Any]:
        return dict(json.loads(self.ok("status", run, "--json")))

    def undisturbed(self, steps: int) -> RunDir:
        """The same recipe on this machine, with as many workers."""
        words = ("--run-url", "here", "--follow", "resources.nproc_per_node=2", "data.source=tokens/train")
        self.ok("tiny.yaml", *words, f"train.max_steps={steps}", timeout=300)
        return RunDir(str(self.here / "here"))


@pytest.fixture
def laptop(tmp_path: Path, s3: Bucket) -> Iterator[Laptop]:
    if lacks := why_no_pods():
        pytest.skip(lacks)
    files.set_store_options(StoreOptions(endpoint_url=s3.endpoint))
    keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    keys["AWS_EC2_METADATA_DISABLED"] = "true"
    folder = tmp_path / "pods"
    folder.mkdir()
    with network_of_pods(folder, secrets={SECRET: keys}, doors={S3_PORT: s3.server.port}) as pods:
        yield Laptop(tmp_path / "laptop", pods, s3)


def wait(done: Callable[[], Any], what: str, seconds: float, pods: Pods) -> Any:
    until = time.monotonic() + seconds
    while not (value := done()):
        logs = "".join(f"--- {name}\n{pods.log(name)}" for name in pods.names())
        assert time.monotonic() < until, f"not within {seconds:.0f} s: {what}\n{logs}"
        time.sleep(0.3)
    print(f"{time.monotonic() - until + seconds:6.1f} s until {what}", flush=True)
    return value


def steps(run: RunDir, attempt: int) -> int:
    return sum(row["attempt"] == attempt for row in run.rows("steps"))


def test_a_cluster_of_the_manifest_carries_a_run_through_a_drain_and_the_death_of_its_head(laptop: Laptop) -> None:
    """Two nodes of three: a pod is ended with its time of grace, then the head is killed; the same bits in the end."""
    pods = laptop.pods
    pods.apply(pods_of(laptop.manifest("kuberay", nodes=3)))
    everyone = sorted(pods.names())
    wait(lambda: pods.nodes() == everyone, "all nodes", 240, pods)
    url = f"{laptop.bucket.url}/runs/drained"
    words = ("tiny.yaml", "--cluster", "./site.yaml", "--nodes", "2", "--run-url", url, "--json", FOREVER)
    name = json.loads(laptop.ok(*words))["run_id"]
    run = RunDir(url)
    wait(lambda: steps(run, 0) > 5, "first steps", 240, pods)

    hosts = [node["host"] for node in run.read_json("attempts/0000/nodes.json")]
    assert "head" not in hosts
    seconds = pods.remove(hosts[1])
    print(f"{seconds:.1f} s from TERM to the end of the pod")
    assert seconds < 120, "the whole of its grace: it was killed"
    record = run.outcome(0)
    assert record is not None and record.reason == "preempted", record
    wait(lambda: 1 in run.attempts() and steps(run, 1) > 20, "steps on other nodes", 240, pods)
    assert run.starts()[1] == record.step, "nothing was lost"
    assert hosts[1] not in [node["host"] for node in run.read_json("attempts/0001/nodes.json")]

    pods.add(hosts[1])
    before = {pod: pods.starts(pod) for pod in pods.names()}
    pods.kill("head")
    wait(lambda: pods.starts("head") > before["head"], "the head again", 60, pods)
    wait(lambda: pods.nodes() == everyone, "all nodes again", 300, pods)
    wait(lambda: laptop.status(name)["state"] == "lost", "the run is known as lost", 240, pods)
    enough = committed_steps(run)[-1] + 60
    laptop.ok("resume", name, "--cluster", "./site.yaml", f"train.max_steps={enough}")
    wait(lambda: laptop.status(name)["state"] == "completed", "its end", 300, pods)
    same_training(run, laptop.undisturbed(enough))


def test_a_ray_job_is_the_run_and_goes_on_with_another_cluster(laptop: Laptop) -> None:
    """Its entrypoint launches; when the whole cluster is lost, KubeRay makes another, and it resumes there."""
    pods = laptop.pods
    url = f"{laptop.bucket.url}/runs/job"
    manifest = laptop.manifest("kuberay-job", "--run-url", url, nodes=2)
    run = RunDir(url)
    dashboard = f"http://{address_of(0)}:8265"
    pods.apply(pods_of(manifest))
    everyone = sorted(pods.names())
    wait(lambda: pods.nodes() == everyone, "all nodes", 240, pods)
    with Submitting(pods, submit_script(manifest, "try-1", dashboard)):
        wait(lambda: steps(run, 0) > 60, "first steps", 300, pods)
        for name in pods.names():
            pods.kill(name)
        wait(lambda: not pods.nodes(), "nothing there", 60, pods)
    wait(lambda: pods.nodes() == everyone, "all nodes again", 300, pods)
    with Submitting(pods, submit_script(manifest, "try-2", dashboard)) as again:
        wait(lambda: again.poll() is not None, "its end", 300, pods)
        assert again.returncode == 0
    record = run.outcome()
    assert record is not None and (record.outcome, record.attempt) == ("completed", 1)
    assert run.starts()[1] > 0
    state = subprocess.run(
        [*pods.inside(), "bash", "-c", f"ray job status --address {dashboard} try-2"],
        env={**laptop.env, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert "SUCCEEDED" in (state.stdout + state.stderr).upper()
    same_training(run, laptop.undisturbed(STEPS))


class Submitting:
    """The pod that submits a RayJob: a shell with the command that KubeRay gives it."""

    def __init__(self, pods: Pods, script: str) -> None:
        self._argv = [*pods.inside(), "bash", "-c", "--", script]

    def __enter__(self) -> subprocess.Popen[bytes]:
        env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": "/nonexistent"}
        self._process = subprocess.Popen(self._argv, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
        return self._process

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # what its shell has started, too
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
