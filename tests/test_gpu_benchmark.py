"""The one command that measures a GPU, tried without one: its parts run in tiny sizes and a file says what came out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu.py"
QUICK = "train-160m"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)


def test_a_dry_run_lists_parts_and_the_first_six_always_fit() -> None:
    done = run("--dry-run")
    assert done.returncode == 0
    *parts, total = done.stdout.splitlines()
    limits = [int(line.split("at most")[1].split()[0]) for line in parts]
    assert sum(limits[:6]) <= 570
    assert total.startswith(f"all of them {sum(limits)} s")


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--only", "trian"], "no part trian; there are train-160m"), (["--device", "cpu"], "--tiny go together")],
)
def test_a_mistake_is_told_without_a_traceback(words: list[str], told: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("parts", [QUICK, pytest.param("all", marks=pytest.mark.slow)])
def test_parts_run_in_tiny_sizes_and_are_written_down(tmp_path: Path, parts: str) -> None:
    only = [] if parts == "all" else ["--only", parts]
    done = run("--device", "cpu", "--tiny", "--out", str(tmp_path), *only)
    assert done.returncode == 0, done.stdout + done.stderr
    (page,) = tmp_path.glob("*.md")
    results = json.loads(page.with_suffix(".json").read_text())["results"]
    assert "none of these figures means anything" in page.read_text()
    assert all(f"| {name} |" in page.read_text() for name in results)
    assert results["train-160m"]["tokens/s"] > 0
    assert results["train-160m"]["checkpoint stall s"] > 0
    assert not [result for result in results.values() if "error" in result]


def test_what_fails_or_has_no_time_is_written_down(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--tiny", "--out", str(tmp_path), "--only", "loss", "--minutes", "0.01")
    assert done.returncode == 0
    (page,) = tmp_path.glob("*.json")
    assert "left of --minutes" in json.loads(page.read_text())["results"]["loss"]["not run"]
