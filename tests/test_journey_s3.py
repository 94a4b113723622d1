"""The quickstart with everything in S3: the same commands, only the place differs, and nothing is exported."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.shell import Shell

pytestmark = pytest.mark.s3
ROOT = Path(__file__).parents[1]
TINY = [
    "model.dim=32", "model.n_layers=1", "model.n_heads=2", "model.ffn_dim=64", "data.seq_len=16", "train.device=cpu",
    "train.max_steps=4", "checkpoint.every_steps=2", "validation.max_batches=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A user who has typed `launch sandbox up s3` and exported nothing."""
    shell = Shell(tmp_path_factory.mktemp("journey"))
    shell.env = {key: value for key, value in shell.env.items() if not key.startswith("AWS_")}
    shell.env["AWS_EC2_METADATA_DISABLED"] = "true"
    try:
        said = shell("sandbox", "up", "s3")
        assert said.returncode == 0, said.stderr
        yield shell
    finally:
        shell("sandbox", "down", "s3")


def ok(shell: Shell, *words: str) -> str:
    done = shell(*words, timeout=120)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def far(shell: Shell) -> str:
    """A run that has ended, by its name."""
    ok(shell, "quickstart", "--cluster", "sandbox-s3", "--name", "far", *TINY)
    return "far"


def test_the_quickstart_in_the_sandbox(shell: Shell, far: str) -> None:
    state = json.loads(ok(shell, "status", far, "--json"))
    assert (state["state"], state["step"], state["checkpoint"]) == ("completed", 4, 4)
    assert state["url"].startswith("s3://launchyard/runs/far-")
    assert "whole" in ok(shell, "checkpoints", far, "--verify")
    assert len(ok(shell, "metrics", far, "--jsonl").splitlines()) == 4
    assert "rank 0" in ok(shell, "logs", far)
    assert "completed" in ok(shell, "why", state["url"]), "by its URL as well"
    ok(shell, "generate", far, "--prompt", "The ", "--max-new-tokens", "4")
    ok(shell, "export", far, "--to", "hf", "--out", "exported")
    assert (shell.here / "exported/config.json").exists()
    assert list(shell.here.iterdir()) == [shell.here / "exported"], "and nothing else came to lie here"


def test_it_goes_on_where_others_are_exported(shell: Shell, far: str) -> None:
    """Keys of another account in the shell: what the cluster file says wins, for all processes."""
    other = {"AWS_ACCESS_KEY_ID": "AKIAOTHER", "AWS_SECRET_ACCESS_KEY": "other", "AWS_PROFILE": "nobody"}
    done = shell("resume", far, "train.max_steps=6", timeout=120, **other)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(ok(shell, "status", far, "--json"))["step"] == 6


def test_a_run_of_this_machine_moves_into_it(shell: Shell) -> None:
    """With its history and its newest checkpoint; the folder says where it went, and goes on no more."""
    ok(shell, "quickstart", "--local", "--name", "mover", "--run-url", "mover", *TINY)
    place = ("--cluster", "sandbox-s3", "train.max_steps=6")
    dry = ok(shell, "resume", "mover", *place, "--dry-run")
    assert "copied to s3://launchyard/runs/mover-" in dry and not (shell.here / "mover/moved.json").exists()
    ok(shell, "resume", "mover", *place, "--follow")
    state = json.loads(ok(shell, "status", "mover", "--json"))
    assert (state["state"], state["step"], state["attempt"]) == ("completed", 6, 1)
    assert state["url"].startswith("s3://launchyard/runs/mover-")
    rows = [json.loads(line) for line in ok(shell, "metrics", "mover", "--jsonl").splitlines()]
    assert [row["attempt"] for row in rows] == [0] * 4 + [1] * 2
    assert "nothing is wrong" in ok(shell, "fsck", "mover")
    again = shell("resume", "./mover", "train.max_steps=8", timeout=60)
    assert again.returncode == 2 and f"this run goes on in {state['url']}" in again.stderr
    shutil.rmtree(shell.here / "mover")


def test_text_is_prepared_into_it(shell: Shell) -> None:
    exported = json.loads(ok(shell, "sandbox", "env", "s3", "--json"))
    shell.env |= {name: value for name, value in exported.items() if value}
    try:
        source, tokenizer = (str(ROOT / f"recipes/quickstart/{name}") for name in ("emma.txt", "tokenizer.json"))
        ok(shell, "prepare", source, "--tokenizer", tokenizer, "--out", "s3://launchyard/data/emma")
        assert "all chunks" in ok(shell, "inspect", "s3://launchyard/data/emma", "--verify")
        data = ["data.source=s3://launchyard/data/emma", "data.validation=null", "validation.every_steps=null"]
        ok(shell, "quickstart", "--run-url", "s3://launchyard/runs/near", "--name", "near", *TINY, *data)
    finally:
        shell.env = {name: value for name, value in shell.env.items() if name not in exported}


def test_the_secret_is_nowhere_else(shell: Shell, far: str) -> None:
    folder = shell.root / "state/launchyard/sandbox/s3"
    secret = (folder / "credentials").read_text().split("secret_access_key = ")[1].strip().encode()
    assert len(secret) >= 40
    # The server's own data is among what is searched: every object of every run lies in it as it was written.
    holders = [path for path in shell.root.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert sorted(holders) == [folder / "credentials", folder / "s3.json"]


def test_a_store_that_is_down_is_said(shell: Shell, far: str) -> None:
    ok(shell, "sandbox", "down", "s3")
    states = {state["name"]: state["state"] for state in json.loads(ok(shell, "status", "--json"))}
    assert states[far] == "unreachable"
    done = shell("quickstart", "--cluster", "sandbox-s3", *TINY)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr and "Is the store up" in done.stderr
    assert "Traceback" not in done.stderr
    assert not os.path.exists(shell.here / "runs")
