"""Sweeps with the real worker: a point is the very run that the recipe alone would have been, whatever was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from launchyard.host.processes import end_marked, python_argv
from launchyard.run.rundir import RunDir
from tests.support.shell import Shell
from tests.support.small_runs import RECIPE, final_weights, history, write_data

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    made = Shell(tmp_path)
    write_data(made.here / "tokens")
    recipe = {**RECIPE, "data": {**RECIPE["data"], "source": "tokens/train", "validation": "tokens/validation"}}
    recipe |= {"validation": {"every_steps": 6}, "resources": {"nproc_per_node": 1, "max_failures": 1}}
    (made.here / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return made


def told(shell: Shell, *words: str) -> dict[str, list[dict[str, str]]]:
    done = shell(*words, "--json", timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_point_is_bit_equal_to_the_recipe_alone_also_when_all_was_killed(shell: Shell) -> None:
    """The command dies in the middle of the first point, and so do its workers; --resume makes what it would have."""
    argv = [*python_argv(sys.executable), "-m", "launchyard", "sweep", "tiny.yaml", "lr=[1e-3,3e-3]", "--run-url", "s"]
    command = subprocess.Popen(
        argv, cwd=shell.here, env=shell.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    first = RunDir(str(shell.here / "s/x"))
    until = time.monotonic() + 120
    while not (first.exists("plan.json") and sum(1 for _ in first.rows("steps")) > 6):
        assert time.monotonic() < until and command.poll() is None
        time.sleep(0.05)
        folders = sorted((shell.here / "s").glob("*-1")) if (shell.here / "s").is_dir() else []
        first = RunDir(str(folders[0])) if folders else first
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    os.kill(first.job(0).pid, signal.SIGKILL)
    end_marked(first.url)
    points = told(shell, "sweep", "--resume", "s/../s")["points"]
    assert [point["state"] for point in points] == ["completed", "completed"]
    for point, lr in zip(points, (1e-3, 3e-3), strict=True):
        alone = f"alone-{lr}"
        done = shell("tiny.yaml", f"optimizer.lr={lr}", "--run-url", alone, "--follow", timeout=200)
        assert done.returncode == 0, done.stderr
        swept, other = RunDir(point["url"]), RunDir(str(shell.here / alone))
        assert history(swept) == history(other)
        left, right = final_weights(swept), final_weights(other)
        assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
        best = min(row["loss"] for row in other.rows("validation"))
        assert point["best_validation_loss"] == best


def test_a_detached_sweep_goes_on_by_itself(shell: Shell) -> None:
    began = told(shell, "sweep", "tiny.yaml", "seed=[1,2]", "train.max_steps=3", "--detach")
    until = time.monotonic() + 200
    states = ["not started"]
    while set(states) != {"completed"}:
        assert time.monotonic() < until, states
        time.sleep(0.5)
        states = [point["state"] for point in told(shell, "status", str(began["sweep_id"]))["points"]]
