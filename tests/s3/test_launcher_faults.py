"""A store that fails while people launch a run in it, ask about it or stop it: clear words, soon, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launchyard.host.processes import descendants, end_all, end_marked, marked
from launchyard.launcher.backends.local import backend
from launchyard.launcher.runs.registry import register
from launchyard.launcher.runs.state import state_of
from launchyard.run.checkpoints import committed_steps
from launchyard.run.records import Job, OutcomeRecord
from tests.s3.runs import STEPS, Remote, Spell, wait_for
from tests.support.faultproxy import FaultProxy
from tests.support.faults import Answer, where
from tests.support.shell import Shell
from tests.support.small_runs import history
from tests.support.standin import PlannedHere
from tests.support.store import Bucket

pytestmark = pytest.mark.s3
ROOT = Path(__file__).parents[2]


@pytest.fixture
def shell(proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A user whose variables lead to the proxy, and who sees the same runs as this test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "shell/state"))
    return Shell(tmp_path / "shell")


# -- mistakes and outages at the launch -------------------------------------------------------------------------------
def cluster(folder: Path, bucket: Bucket, **storage: str) -> str:
    path = folder / "there.yaml"
    lines = [f"  {key}: {value}" for key, value in {"url": f"{bucket.url}/runs", **storage}.items()]
    path.write_text("\n".join(["name: there", "scheduler: local", "storage:", *lines, ""]))
    return str(path)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


MISTAKES = {
    "wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong/secret+that+nobody+may+see"}, 2, "SignatureDoesNotMatch"),
    "unknown key": ({"AWS_ACCESS_KEY_ID": "AKIANOBODY"}, 2, "InvalidAccessKeyId"),
    "no credentials": ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, 2, "credentials"),
    "wrong bucket": ({"bucket": "nobody-made-this"}, 2, "NoSuchBucket"),
    "no such profile": ({"profile": "nobody"}, 2, "nobody"),
    "no endpoint": ({"endpoint_url": "http://127.0.0.1:{closed}"}, 1, "Is the store up"),
    "server hangs": ({"hang": "1"}, 1, "Is the store up"),
}


@pytest.mark.parametrize(("wrong", "code", "word"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_launch_that_cannot_reach_its_store(
    wrong: dict[str, str], code: int, word: str, shell: Shell, s3: Bucket, proxy: FaultProxy
) -> None:
    """One clear error within about twenty seconds, and nothing was created."""
    storage = {key: value.format(closed=closed_port()) for key, value in wrong.items() if key in STORAGE}
    if "bucket" in wrong:
        storage["url"] = f"s3://{wrong['bucket']}/runs"
    there = cluster(shell.here, s3, **storage)
    exported = {key: value for key, value in wrong.items() if key.startswith("AWS_")}
    if "hang" in wrong:
        s3.server.freeze()
    began = time.monotonic()
    try:
        done = shell("quickstart", "--cluster", there, "train.device=cpu", **exported)
    finally:
        if "hang" in wrong:
            s3.server.thaw()
    assert time.monotonic() - began < 40, "20 s on a quiet machine"
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and word in done.stderr
    said(done, s3)
    assert s3.objects() == []
    assert not (shell.root / "state/launchyard/runs").exists()
    assert [path.name for path in shell.here.iterdir()] == ["there.yaml"]


STORAGE = ("profile", "endpoint_url")


def said(done: subprocess.CompletedProcess[str], bucket: Bucket) -> None:
    """What it printed is for people, and keeps the secret."""
    for noise in ("Traceback", "botocore", "Errno", "..", bucket.secret_key, "wrong/secret"):
        assert noise not in done.stderr + done.stdout, done.stderr


# -- commands while it is away ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["frozen", "refusing", pytest.param("gone", marks=pytest.mark.slow)])
def test_commands_while_the_store_is_away(kind: str, remote: Remote, shell: Shell, proxy: FaultProxy) -> None:
    url = remote.run.url
    register("faults-run", "faults", url)
    words = [
        ["status", url],
        ["logs", url],
        ["why", "faults"],
        ["stop", url],
        ["checkpoints", url, "--verify"],
        ["export", url, "--to", "hf", "--out", "exported"],
    ]
    if kind == "gone":
        proxy.refuse()
    elif kind == "frozen":
        remote.bucket.server.freeze()
    else:
        proxy.fault(Answer(403))
    try:
        began = time.monotonic()
        listed = shell("status", "--json")
        assert time.monotonic() - began < 19, "quick: one run among many is waited for 3 s"
        with ThreadPoolExecutor(len(words)) as pool:
            results = list(pool.map(lambda one: shell(*one, timeout=120), words))
    finally:
        proxy.accept()
        remote.bucket.server.thaw()
    assert [state["state"] for state in json.loads(listed.stdout)] == ["unreachable"]
    for one, done in zip(words, results, strict=True):
        assert done.returncode == (2 if kind == "refusing" else 1), (one, done.stdout, done.stderr)
        assert "error:" in done.stderr and url in done.stderr
        said(done, remote.bucket)
    assert not (shell.here / "exported").exists()


# -- runs with an owner -----------------------------------------------------------------------------------------------
class Owned:
    """The run as `launch` starts it: owner, agent, torchrun, worker."""

    def __init__(self, remote: Remote) -> None:
        self.remote, self.pids = remote, set[int]()

    def submit(self) -> Job:
        job = backend.submit(self.remote.run, PlannedHere(), {})
        self.pids.add(job.pid)
        return job

    def outcome(self, seconds: float = 120) -> str:
        """How the run ended, once its owner is gone; nothing of it is left."""
        wait_for(lambda: not state_of(self.remote.run).alive, seconds)
        wait_for(lambda: not marked(self.remote.run.url), 10)
        return state_of(self.remote.run).state

    def close(self) -> None:
        for pid in self.pids:
            end_all(descendants(pid))
        end_marked(self.remote.run.url)


@pytest.fixture
def owned(remote: Remote) -> Iterator[Owned]:
    owned = Owned(remote)
    yield owned
    owned.close()


def test_a_run_outlives_an_outage(owned: Owned, remote: Remote, proxy: FaultProxy, shell: Shell) -> None:
    """Everything fails for a while, from the first upload on: heartbeats, logs, rows, stop requests, checkpoints."""
    remote.set_retry_seconds(900)
    uploading = threading.Event()
    proxy.on(where(method="PUT", key=r"\.safetensors$"), "before", lambda _: uploading.set())
    owned.submit()
    assert uploading.wait(60)
    proxy.refuse()
    began = time.monotonic()
    done = shell("stop", remote.run.url)
    assert done.returncode == 1 and "Is the store up" in done.stderr
    time.sleep(max(0.0, 8 - (time.monotonic() - began)))
    proxy.accept()
    assert owned.outcome() == "completed"
    remote.is_exact()
    remote.is_whole()
    log = remote.run.read_log(f"{remote.run.attempt_dir(remote.attempt)}/logs/rank-00000.log").decode()
    assert "store trouble" in log and "store answers again" in log and "finished" in log


def test_stopped_while_no_data_comes_and_resumed(owned: Owned, remote: Remote, proxy: FaultProxy, shell: Shell) -> None:
    remote.set_retry_seconds(900)
    rule = proxy.fault(Answer(503), where(method="GET", key=r"train/.*\.bin$"))
    owned.submit()
    wait_for(lambda: remote.saw_event("started"))
    done = shell("stop", remote.run.url, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "stopped (stop)" in done.stdout
    assert owned.outcome() == "stopped"
    rule.off()
    done = shell("resume", remote.run.url, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    state = state_of(remote.run)
    assert (state.state, state.step) == ("completed", STEPS)
    # A resume plans anew, here with more threads a worker, which add up in another order.
    assert history(remote.run, ("step", "data_hash")) == [(row[0], row[-1]) for row in remote.origin.rows]
    remote.is_whole()


def test_a_resume_needs_no_right_to_delete(owned: Owned, remote: Remote, proxy: FaultProxy) -> None:
    """The end and the stop request before it are taken back by overwriting them."""
    ended = OutcomeRecord(outcome="stopped", reason="stop", message="m", attempt=0, step=1, time=time.time())
    remote.run.write_outcome(ended, of_run=True)
    remote.run.request_stop("stop")
    remote.set_retry_seconds(900)
    proxy.fault(Answer(403, "AccessDenied"), where(method="DELETE"))
    owned.submit()
    assert owned.outcome() == "completed"
    remote.is_exact()


def test_attempts_follow_until_the_last_save_is_made(owned: Owned, remote: Remote, proxy: FaultProxy) -> None:
    """The retry budget of one attempt is not that of the run."""
    remote.set_retry_seconds(2)
    proxy.fault(Answer(503), Spell("PUT", rf"step-{STEPS:08d}/.*\.safetensors$", 6))
    owned.submit()
    assert owned.outcome() == "completed"
    assert remote.attempt >= 2
    remote.is_exact()
    remote.is_whole()


def test_an_outcome_that_cannot_be_written_loses_no_run(
    owned: Owned, remote: Remote, proxy: FaultProxy, shell: Shell
) -> None:
    remote.set_retry_seconds(2)
    rule = proxy.fault(Answer(503), where(method="PUT", key=r"outcome\.json$"))
    owned.submit()
    assert owned.outcome() in ("lost", "failed")
    assert state_of(remote.run).resumable and committed_steps(remote.run)[-1] == STEPS
    rule.off()
    why = shell("why", remote.run.url)
    assert why.returncode == 0 and f"step {STEPS}" in why.stdout
    owned.submit()
    assert owned.outcome() == "completed"
    remote.is_exact()


# -- a short notice ---------------------------------------------------------------------------------------------------
def test_a_signal_with_a_short_grace_while_the_store_is_away(remote: Remote, proxy: FaultProxy) -> None:
    """The agent ends its workers and itself in time, cleanly; the run goes on later from what was saved."""
    remote.set_retry_seconds(900)
    job = {"host": socket.gethostname(), "pid": os.getpid(), "pid_started": 0.0, "created": time.time()}
    attempt = remote.attempt + 1
    remote.run.claim_attempt(
        Job(attempt=attempt, backend="local", job_id="t", nnodes=1, nproc_per_node=1, device="cpu", **job)
    )
    uploading = threading.Event()
    proxy.on(where(method="PUT", key=r"\.safetensors$"), "before", lambda _: uploading.set())
    argv = [
        sys.executable,
        "-m",
        "launchyard.launcher.agent.node",
        remote.run.url,
        f"--attempt={attempt}",
        "--nproc-per-node=1",
    ]
    agent = subprocess.Popen(
        [*argv, "--device=cpu", "--grace-seconds=4"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    remote.processes = [agent]
    assert uploading.wait(60)
    proxy.refuse()
    time.sleep(1)
    agent.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert agent.stderr is not None
    words = agent.communicate(timeout=90)[1]
    assert time.monotonic() - began < 45, words
    assert agent.returncode == 1 and "its checkpoints are intact" in words and "Traceback" not in words
    assert not marked(remote.run.url)
    proxy.accept()
    remote.train()
    remote.is_exact()


def test_credentials_that_expire_and_are_renewed(remote: Remote, proxy: FaultProxy, tmp_path: Path) -> None:
    """Keys in a file, refused by the server for a while: the run waits, and takes the new ones without a restart."""
    secrets, bucket = tmp_path / "credentials", remote.bucket

    def write(secret: str) -> None:
        secrets.write_text(f"[lab]\naws_access_key_id = {bucket.access_key}\naws_secret_access_key = {secret}\n")

    write(bucket.secret_key)
    env = {"AWS_PROFILE": "lab", "AWS_SHARED_CREDENTIALS_FILE": str(secrets)}
    env |= {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    refused = threading.Event()

    def expire(_: object) -> None:
        write("expired")
        rule = proxy.fault(Answer(403, "ExpiredToken"))
        threading.Timer(3, lambda: (rule.off(), refused.set())).start()
        threading.Timer(6, write, [bucket.secret_key]).start()

    proxy.on(where(method="PUT", key=r"\.safetensors$"), "before", expire)
    remote.set_retry_seconds(900)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        remote.start()
    assert remote.wait() == [0]
    assert refused.is_set()
    remote.is_exact()
    remote.is_whole()
    statuses = {request.status for request in proxy.requests(where(method="PUT"))}
    assert {200, 403} <= statuses
