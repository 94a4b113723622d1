"""The main path as a person walks it: launch, look, kill, resume, generate; the real worker under the real agent."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from launchyard.host.processes import end_marked
from launchyard.launcher.recipe.bundled import recipe_folder
from launchyard.run.rundir import RunDir
from tests.support.shell import Shell
from tests.support.small_runs import final_weights, history

STEPS = 60
RECIPE: dict[str, Any] = {
    "name": "journey",
    "model": {"family": "llama", "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64,
              "max_seq_len": 64},
    "tokenizer": str(recipe_folder() / "quickstart/tokenizer.json"),
    "data": {"source": "text.txt", "seq_len": 32, "validation": 0.1, "seed": 5},
    "train": {"global_batch_size": 12, "max_steps": STEPS, "device": "cpu"},
    "optimizer": {"lr": 3e-3},
    "checkpoint": {"every_steps": 6, "export": True},
    "validation": {"every_steps": 20, "sample": {"prompt": "It is", "max_new_tokens": 8}},
}  # fmt: skip


class Place(Shell):
    """A shell with the recipe and its text, and the runs that were started from it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        novel = (recipe_folder() / "quickstart/emma.txt").read_text()
        (self.here / "text.txt").write_text(novel[:60_000])
        (self.here / "journey.yaml").write_text(yaml.safe_dump(RECIPE))
        self.urls: list[str] = []

    def run(self, name: str, *words: str, code: int = 0) -> RunDir:
        """`launch` and follow to the end."""
        run = RunDir(str(self.here / name))
        self.urls.append(run.url)
        self.ok("journey.yaml", "--run-url", name, *words, code=code)
        return run

    def ok(self, *words: str, code: int = 0) -> str:
        done = self(*words, timeout=170)
        assert done.returncode == code, f"launch {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """`launch …` in the background, as the leader of its own process group, as in a terminal."""
        argv = [sys.executable, "-m", "launchyard", *words]
        return subprocess.Popen(
            argv, cwd=self.here, env=self.env, text=True, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for url in made.urls:
        end_marked(url)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, RunDir]]:
    """A place with one run that nobody disturbed. Nothing in it may be changed."""
    made = Place(tmp_path_factory.mktemp("finished"))
    yield made, made.run("one")
    end_marked(made.urls[0])


def processes_of(run: RunDir) -> list[psutil.Process]:
    """Everything that belongs to a run: it carries the run's mark, or names it on its command line."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get("LAUNCHYARD_RUN_URL") == run.url or run.url in process.cmdline()
        except psutil.Error:
            continue
        if marked and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def assert_same_run(one: RunDir, other: RunDir) -> None:
    assert history(one) == history(other)
    mine, theirs = final_weights(one), final_weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_launch_look_and_write(finished: tuple[Place, RunDir], tmp_path: Path) -> None:
    """Every command that a newcomer tries on a finished run."""
    place, run = finished
    assert "completed" in place.ok("status", "one")
    rows = [json.loads(line) for line in place.ok("metrics", "one", "--jsonl").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    wanted = {
        "step",
        "loss",
        "grad_norm",
        "lr",
        "tokens_seen",
        "tokens_per_second",
        "step_seconds",
        "data_wait_seconds",
    }
    assert wanted | {"data_hash", "attempt", "time"} <= rows[0].keys()
    assert "rank" in place.ok("logs", "one")
    assert str(STEPS) in place.ok("checkpoints", "one", "--verify")
    assert "nothing is wrong" in place.ok("fsck", "one")
    assert "completed" in place.ok("why", "one")
    written = {
        place.ok("generate", model, "--prompt", "It is", "--temperature", "0", "--max-new-tokens", "8")
        for model in ("one", f"{run.url}/weights", f"one/checkpoints/step-{STEPS:08d}")
    }
    assert len(written) == 1
    assert run.read_text("sample.txt").startswith("It is")
    assert run.read_text("loss.svg").startswith("<svg")
    place.ok("export", "one", "--to", "hf", "--out", str(tmp_path / "out"))
    exported, kept = load_file(tmp_path / "out/model.safetensors"), load_file(run.path("weights/model.safetensors"))
    assert exported.keys() == kept.keys()
    assert all(torch.equal(exported[key], kept[key]) for key in kept)
    born, finished = run.events(0)[0]["born"], next(e for e in run.events(0) if e["event"] == "finished")
    assert sum(finished["seconds"].values()) == pytest.approx(finished["time"] - born, rel=0.01, abs=0.05)


def test_the_tree_killed_and_resumed(place: Place, finished: tuple[Place, RunDir]) -> None:
    """SIGKILL for owner, torchrun and workers at once; nothing survives them, and `launch resume` makes it whole."""
    check_kills(place, finished[1], kills=1, nproc=1)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("nproc", [1, 2])
def test_the_tree_killed_25_times(place: Place, nproc: int) -> None:
    words = (f"resources.nproc_per_node={nproc}", "train.max_steps=290")
    check_kills(place, place.run("undisturbed", *words), *words, kills=25, nproc=nproc)


def check_kills(place: Place, expected: RunDir, *words: str, kills: int, nproc: int) -> None:
    run, rng = RunDir(str(place.here / "killed")), random.Random(kills + nproc)
    place.urls.append(run.url)
    command = ["journey.yaml", "--run-url", "killed", *words]
    landed = 0
    for _ in range(kills):
        place.ok(*command, "--detach")
        command = ["resume", "killed"]
        wait_until(lambda: run.attempts())
        attempt = run.attempts()[-1]
        if rng.random() < 0.7:
            wait_until(lambda: run.outcome() or any(row["attempt"] == attempt for row in run.rows("steps")))  # noqa: B023
        time.sleep(rng.uniform(0.0, 0.8))
        if run.outcome() is not None:
            break
        landed += 1
        for process in processes_of(run):
            process.send_signal(signal.SIGKILL)
        wait_until(lambda: not processes_of(run), seconds=10)
        if is_over(run):
            break
    assert landed
    if not is_over(run):
        assert "lost" in place.ok("status", "killed") or run.attempts()
        place.ok("resume", "killed", "--follow")
    assert_same_run(run, expected)
    checked = json.loads(place.ok("fsck", "killed", "--json"))
    assert (checked["problems"], checked["not_recorded"]) == ([], []), "rows of all attempts are as they were written"


def is_over(run: RunDir) -> bool:
    """Its last attempt is completed; who owned it may have been killed before it could say so of the run."""
    record = run.outcome(run.attempts()[-1]) if run.attempts() else None
    return record is not None and record.outcome == "completed"


def test_ctrl_c_saves_and_resume_goes_on_elsewhere(place: Place, finished: tuple[Place, RunDir]) -> None:
    """Ctrl-C in the terminal of a followed run: agreed save, exit code 75, no process left; then another size."""
    _, expected = finished
    following = place.begin("journey.yaml", "--run-url", "stopped")
    run = RunDir(str(place.here / "stopped"))
    place.urls.append(run.url)
    wait_until(lambda: any(True for _ in run.rows("steps")))
    os.killpg(following.pid, signal.SIGINT)
    out, _ = following.communicate(timeout=60)
    assert following.returncode == 75, out
    assert "launch resume" in out
    wait_until(lambda: not processes_of(run), seconds=10)
    outcome = run.outcome()
    assert outcome is not None and outcome.outcome == "stopped" and outcome.step == len(history(run))
    place.ok("resume", "stopped", "--follow", "resources.nproc_per_node=3")
    one, other = history(expected), history(run)
    assert [row[-1] for row in one] == [row[-1] for row in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine[1] == pytest.approx(theirs[1], rel=1e-5)  # 60 steps; rounding grows with their number


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 8
    path.write_bytes(raw)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_damage_is_named_and_never_used(place: Place) -> None:
    """A flipped bit in the newest checkpoint: the one before it is used, aloud. One in the data: never trained on."""
    expected = place.run("undisturbed")
    run = place.run("hurt", "train.max_steps=30", code=0)
    place.ok("resume", "hurt", "train.max_steps=30", code=2)  # completed: says what to do
    (newest,) = Path(run.path(run.checkpoint_dir(30))).glob("*.safetensors")
    flip(newest, newest.stat().st_size // 2)
    verified = place("checkpoints", "hurt", "--verify")
    assert verified.returncode == 1 and newest.name in verified.stdout + verified.stderr
    said = place.ok("resume", "hurt", "--follow", f"train.max_steps={STEPS}")
    assert newest.name in said + place.ok("why", "hurt") + place.ok("logs", "hurt")
    assert [row[-1] for row in history(run)] == [row[-1] for row in history(expected)]

    shutil.rmtree(place.root / "cache/launchyard/data")  # the cache is nobody's only copy
    place.ok("resume", "hurt", "--follow", f"train.max_steps={STEPS + 1}")
    chunk = next(Path(json.loads(run.read_text("plan.json"))["data"]["train"][0]["folder"]).glob("chunk-*.bin"))
    flip(chunk, chunk.stat().st_size - 100)
    place.run("never", code=1)
    never = RunDir(str(place.here / "never"))
    assert list(never.rows("steps")) == []
    assert chunk.name in place.ok("why", "never")
    flip(chunk, chunk.stat().st_size - 100)


def test_a_loss_that_is_no_number_ends_the_run(place: Place) -> None:
    run = place.run("nan", "optimizer.lr=1e30", "train.max_grad_norm=1e30", code=1)
    outcome = run.outcome()
    assert outcome is not None and outcome.fatal and len(run.attempts()) == 1
    why = place.ok("why", "nan")
    assert "nan" in why or "inf" in why
    assert "data_hash" in why and "step" in why


MISTAKES = {
    "the model": ("model.n_layers=3", "model.n_layers"),
    "the data": ("data.seed=6", "data.seed"),
    "the batch": ("train.global_batch_size=24", "train.global_batch_size"),
    "an unknown key": ("train.max_step=5", "train.max_steps"),
    "workers that do not divide it": ("resources.nproc_per_node=5", "12 sequences"),
}


def test_a_resume_that_would_be_another_run_is_refused(finished: tuple[Place, RunDir]) -> None:
    place, run = finished
    before = sorted(str(path) for path in Path(run.url).rglob("*"))
    for what, (override, named) in MISTAKES.items():
        done = place("resume", "one", f"train.max_steps={STEPS + 6}", override)
        assert done.returncode == 2, (what, done.stdout, done.stderr)
        assert named in done.stderr, what
        assert "Traceback" not in done.stderr
    assert sorted(str(path) for path in Path(run.url).rglob("*")) == before
