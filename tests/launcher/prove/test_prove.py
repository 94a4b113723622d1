"""Steps made again are the steps of the run, however it was cut; and a row that was not so is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchyard.launcher.prove.prove import compare, stretches
from launchyard.run.rundir import RunDir
from launchyard.training.data.prepare.prepare import prepare
from tests.support.shell import Shell

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {"family": "llama", "dim": 32, "n_layers": 2, "n_heads": 2, "ffn_dim": 64, "max_seq_len": 64},
    "data": {"source": "data", "seq_len": 32},
    "train": {"global_batch_size": 8, "max_steps": 12, "device": "cpu"},
    "resources": {"nproc_per_node": 2, "max_failures": 1},
    "checkpoint": {"every_steps": 4},
    "metrics": {"prometheus": False},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, novel: str, tokenizer_file: str) -> Shell:
    """A shell where `run` has trained 12 steps on two workers, the last four of them with another learning rate."""
    shell = Shell(tmp_path_factory.mktemp("prove"))
    (shell.here / "data.txt").write_text(novel[:100_000])
    prepare([str(shell.here / "data.txt")], tokenizer=tokenizer_file, out=str(shell.here / "data"))
    (shell.here / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    done = shell("tiny.yaml", "--run-url", "run", timeout=120)
    assert done.returncode == 0, done.stderr
    done = shell("resume", "run", "--from-step", "8", "optimizer.lr=1e-3", timeout=120)
    assert done.returncode == 0, done.stderr
    return shell


@pytest.mark.slow
def test_every_stretch_is_made_again_to_the_bit_and_a_row_that_was_not_so_is_named(trained: Shell) -> None:
    """Of both attempts, each by its own recipe."""
    before = sorted(path.relative_to(trained.here) for path in (trained.here / "run").rglob("*"))
    done = trained("prove", "run", "--points", "9", "--steps", "4", "--json", timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["holds"]
    assert [(one["start"], one["attempt"], one["exact"]) for one in found["stretches"]] == [
        (0, 0, True),
        (4, 0, True),
        (8, 1, True),
    ]
    assert sorted(path.relative_to(trained.here) for path in (trained.here / "run").rglob("*")) == before
    file = trained.here / "run/metrics/steps-0000.jsonl"
    kept = file.read_bytes()
    rows = [json.loads(line) for line in kept.splitlines()]
    rows[5]["loss"] += 1e-9
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        done = trained("prove", "run", "--points", "9", "--steps", "2", timeout=300)
    finally:
        file.write_bytes(kept)
    assert done.returncode == 1
    assert "step 6: loss is" in done.stdout and done.stdout.count("✗ differs") == 1


def test_what_cannot_be_made_again(trained: Shell) -> None:
    done = trained("prove", "run", "--steps", "9", timeout=60)
    assert done.returncode == 2 and "no checkpoint has 9 steps behind it that one attempt made" in done.stderr


def test_what_a_seed_chooses(trained: Shell) -> None:
    run = RunDir(str(trained.here / "run"))
    once, again = (stretches(run, points=2, steps=1, seed=5) for _ in range(2))
    assert once == again and len(once) == 2


def test_rounding(tmp_path: Path) -> None:
    row = {"step": 1, "loss": 2.0, "lr": 0.1, "data_hash": "a"}
    assert not list(compare(row, {**row, "loss": 2.00001}, 1e-4))
    assert list(compare(row, {**row, "loss": 2.00001}, 0.0)) == ["step 1: loss is 2.00001, and was 2.0"]
    assert list(compare(row, {**row, "lr": 0.1 + 1e-12}, 1e-4)), "the schedule is the same anywhere"
