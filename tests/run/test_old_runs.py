"""A run that the first version made and left unfinished still shows, goes on and leaves its weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from launchyard.run.rundir import RunDir
from tests.support.shell import Shell

FIXTURE = Path(__file__).parent / "old_run"
PLACE = "/old/place"  # what the folder is called in its files
SAVED, STEPS = 15, 40
LONG_AGO = 1.7e9


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A place where `run` is a copy of that run and its data lies where its plan says."""
    shell = Shell(tmp_path_factory.mktemp("old"))
    shutil.copytree(FIXTURE, shell.here, dirs_exist_ok=True)
    for path in shell.here.rglob("*"):
        if path.suffix in (".json", ".yaml") and path.name != "manifest.json":
            path.write_text(path.read_text().replace(PLACE, str(shell.here)))
    for path in shell.here.glob("run/attempts/*/*.json"):
        os.utime(path, (LONG_AGO, LONG_AGO))  # its lease: whoever made it on another machine has left it
    return shell


def said(shell: Shell, *words: str) -> str:
    done = shell(*words, timeout=110)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_it_shows(shell: Shell) -> None:
    state = json.loads(said(shell, "status", "./run", "--json"))
    state = state[0] if isinstance(state, list) else state
    assert (state["state"], state["step"], state["max_steps"], state["checkpoint"]) == ("stopped", SAVED, STEPS, SAVED)
    assert f"was stopped by a user at step {SAVED}" in said(shell, "why", "./run")
    rows = [json.loads(line) for line in said(shell, "metrics", "./run", "--jsonl").splitlines()]
    assert [row["step"] for row in rows if "lr" in row] == list(range(1, SAVED + 1))
    assert "validated: step 8" in said(shell, "logs", "./run")
    saved = json.loads(said(shell, "checkpoints", "./run", "--verify", "--json"))
    assert [(one["step"], one["kind"], one["faults"]) for one in saved] == [
        (10, "permanent", []),
        (15, "temporary", []),
    ]


def test_it_leaves_its_weights(shell: Shell) -> None:
    facts = json.loads(said(shell, "export", "./run", "--out", "weights", "--json"))
    assert "model.safetensors" in facts["files"]
    words = ("--prompt", "the old cat", "--max-new-tokens", "8", "--temperature", "0", "--json")
    of_run, of_export = (json.loads(said(shell, "generate", model, *words)) for model in ("./run", "./weights"))
    assert of_run["text"] == of_export["text"] != ""


def test_it_goes_on_to_its_end(shell: Shell) -> None:
    before = [row["data_hash"] for row in RunDir(str(FIXTURE / "run")).rows("steps")]
    said(shell, "resume", "./run", "train.max_steps=20", "--detach", "--json")
    said(shell, "logs", "./run", "-f")
    run = RunDir(str(shell.here / "run"))
    record = run.outcome()
    assert record is not None, run.errors(1)
    assert (record.outcome, record.step) == ("completed", 20)
    assert run.starts() == {0: 0, 1: SAVED}
    rows = list(run.rows("steps"))
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["data_hash"] for row in rows[:SAVED]] == before
    assert [row["attempt"] for row in rows] == [0] * SAVED + [1] * 5
