"""Bits that flip in a store: named by who looks and at a resume, never trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launchyard.launcher.runs.checkpoints import list_saved
from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.storage import retry
from launchyard.storage.errors import StoreError
from launchyard.training.checkpoint.state import shards
from tests.s3.runs import EVERY, Remote
from tests.support.faultproxy import FaultProxy
from tests.support.faults import Answer
from tests.support.shell import Shell
from tests.support.store import Bucket
from tests.training.checkpoint.test_checkpointer import checkpointer, fresh, saved

pytestmark = pytest.mark.s3


def flip(remote: Remote, key: str, at: float) -> bytes:
    """One bit, where that share of the object is; what it was before."""
    whole = remote.bucket.get(key)
    raw = bytearray(whole)
    raw[min(int(len(raw) * at), len(raw) - 1)] ^= 2
    remote.bucket.put(key, bytes(raw))
    return whole


@pytest.mark.parametrize(("kind", "at"), [("manifest.json", 0.9), (".safetensors", 0.7)])
def test_a_damaged_checkpoint(kind: str, at: float, remote: Remote, tmp_path: Path) -> None:
    """The run goes on from the one before, and comes to the same."""
    steps = committed_steps(remote.run)
    folder = f"runs/faults/{remote.run.checkpoint_dir(steps[-1])}"
    (key,) = (key for key in remote.bucket.objects(folder) if key.endswith(kind))
    flip(remote, key, at)
    done = Shell(tmp_path / "shell")("checkpoints", remote.run.url, "--verify")
    assert done.returncode == 1 and "damaged:" in done.stderr and key in done.stderr
    assert done.stdout.count("whole") == len(steps) - 1
    remote.train()
    (fell,) = remote.events("fell back")
    assert fell["step"] == steps[-1] and key in fell["message"]
    (started,) = remote.events("started")
    assert started["step"] == steps[-2]
    remote.is_exact()
    damaged = [saved.step for saved in list_saved(remote.run, verify_all=True) if saved.faults]
    made_again = steps[-1] % EVERY == 0
    assert damaged == ([] if made_again else [steps[-1]]), "it stays for people to look at, and is not counted"


def test_a_damaged_chunk(remote: Remote, tmp_path: Path) -> None:
    """No step is made of it, and no attempt is made twice for it; with the right bytes the run goes on."""
    key = [key for key in remote.bucket.objects("data/train/") if key.endswith(".bin")][7]
    whole = flip(remote, key, 0.5)
    remote.start()
    assert remote.wait() == [1]
    (error,) = remote.run.errors(remote.attempt)
    assert (error["type"], error["fatal"]) == ("CorruptError", True)
    assert f"{remote.bucket.url}/{key} is changed" in error["message"]
    done = Shell(tmp_path / "shell")("inspect", f"{remote.bucket.url}/data/train", "--verify")
    assert done.returncode == 1 and key in done.stdout + done.stderr
    remote.bucket.put(key, whole)
    remote.train()
    remote.is_exact()


def test_an_outage_at_any_instant_of_a_load_is_no_damage(s3: Bucket, proxy: FaultProxy) -> None:
    """Whichever of its requests is the first to find the store away: nobody goes back to an older checkpoint."""
    run = RunDir(f"{s3.url}/run")
    saved(run, 5, 10)
    before = len(proxy.requests())
    checkpointer(run).load_newest(shards(*fresh()))
    count = len(proxy.requests()) - before
    assert count > 8
    for first in range(count):
        events: list[Any] = []
        rule = proxy.fault(Answer(503), skip=first)
        with retry.retry_budget(0), pytest.raises(StoreError):
            checkpointer(run, events).load_newest(shards(*fresh()))
        rule.off()
        assert rule.hits and events == []
