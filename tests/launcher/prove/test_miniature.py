"""`launch RECIPE --fast-dev-run`: all parts of a recipe run, nothing of it stays; what fails is kept and says so."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchyard.launcher.prove.miniature import in_miniature
from launchyard.training.recipe import Recipe, apply_overrides
from tests.support.shell import Shell

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {"family": "llama", "dim": 32, "n_layers": 2, "n_heads": 2, "ffn_dim": 64, "max_seq_len": 64},
    "data": {"source": "data.txt", "validation": 0.2, "seq_len": 32},
    "train": {"global_batch_size": 8, "max_epochs": 50, "device": "cpu"},
    "validation": {"every_steps": 10, "at_start": True, "sample": {"prompt": "It was", "max_new_tokens": 40}},
    "resources": {"nodes": 4, "max_failures": 3},
    "checkpoint": {"every_steps": 4, "export": True},
    "metrics": {"trackers": ["csv"]},
}


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, novel: str, tokenizer_file: str) -> Shell:
    shell = Shell(tmp_path_factory.mktemp("mini"))
    (shell.here / "data.txt").write_text(novel[:60_000])
    recipe = {**RECIPE, "tokenizer": tokenizer_file}
    (shell.here / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    (shell.root / "tmp").mkdir()
    return shell


def rehearse(shell: Shell, *words: str) -> subprocess.CompletedProcess[str]:
    return shell("tiny.yaml", "--fast-dev-run", *words, timeout=120, TMPDIR=str(shell.root / "tmp"))


def left(shell: Shell) -> list[Path]:
    return [*(shell.root / "tmp").glob("launchyard-*")]


@pytest.mark.slow
def test_every_part_runs_and_nothing_stays(shell: Shell) -> None:
    before = {*shell.here.rglob("*")}
    done = rehearse(shell, "train.max_steps=900", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["passed"] and found["kept"] is None and found["loss"] > 0 and found["seconds"] > 0
    counts = {key: found[key] for key in ("steps", "validations", "checkpoints", "samples", "tasks", "exported")}
    assert counts == {"steps": 3, "validations": 1, "checkpoints": 1, "samples": 1, "tasks": 0, "exported": True}
    assert {*shell.here.rglob("*")} == before and not left(shell)
    assert "no runs yet" in shell("status").stderr + shell("status").stdout


@pytest.mark.slow
def test_a_failure_is_kept_and_has_its_exit_code(shell: Shell) -> None:
    done = rehearse(shell, "optimizer.lr=1e30", "schedule.warmup_steps=0")
    assert done.returncode == 1, done.stdout
    (kept,) = left(shell)
    run_id = done.stdout.rsplit("launch why ", 1)[1].split(",")[0]
    assert f"kept in {kept}/run" in done.stdout and "NonFiniteError" in done.stdout
    assert "NonFiniteError" in shell("why", run_id).stdout
    assert shell("rm", run_id, "--yes").returncode == 0 and not (kept / "run").exists()
    kept.rmdir()


def test_a_plan_of_it_makes_nothing(shell: Shell) -> None:
    done = rehearse(shell, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"]["max_steps"] == 3
    done = rehearse(shell, "data.source=nowhere")
    assert done.returncode == 2 and "nowhere" in done.stderr
    assert not left(shell)


@pytest.mark.parametrize("words", [("--nodes", "2"), ("--cluster", "other"), ("--run-url", "there"), ("--detach",)])
def test_what_it_cannot_go_with(words: tuple[str, ...], shell: Shell) -> None:
    done = rehearse(shell, *words)
    assert done.returncode == 2
    assert f"keeps nothing; it cannot go with {' '.join(words) if words[0] != '--run-url' else words[0]}" in done.stderr
    assert not left(shell)


def test_only_what_a_recipe_has_is_made_small() -> None:
    with_tasks = apply_overrides(RECIPE, {"validation.tasks": ["x"], "validation.tasks_limit": 1})
    for raw in (RECIPE, with_tasks, apply_overrides(RECIPE, {"validation": {}})):
        keys = in_miniature(Recipe.model_validate(raw))
        small = Recipe.model_validate(apply_overrides(raw, keys))
        assert small.train.max_steps == 3 and small.train.max_epochs is None
        assert (small.validation.tasks_limit == 1) == bool(small.validation.tasks)
        assert small.validation.sample is None or small.validation.sample.max_new_tokens == 16
