"""The list of all runs: those that are over are judged once, and again when anything about them changes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launchyard.host.folders import user_cache_folder
from launchyard.launcher.runs.overview import states
from launchyard.launcher.runs.overview.settled import FILE
from launchyard.launcher.runs.overview.states import overview
from launchyard.launcher.runs.registry import register
from launchyard.launcher.runs.state import RunState, state_of
from launchyard.run import layout
from launchyard.run.records import Job, OutcomeRecord, Submission
from launchyard.run.rundir import RunDir


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def claim(run: RunDir, attempt: int) -> None:
    facts = {"host": "elsewhere", "pid": 1, "pid_started": 0.0, "created": 1.0, "nproc_per_node": 1, "device": "cpu"}
    run.claim_attempt(Job.model_validate({"attempt": attempt, "backend": "local", "job_id": "1", **facts}))


def ended(folder: Path, run_id: str, *, seconds_ago: float = 1000.0) -> RunDir:
    """A run of one attempt and two checkpoints."""
    run = RunDir(str(folder / run_id))
    run.write_json(layout.PLAN, {"run_id": run_id, "name": "over", "scheduler": "local", "max_steps": 20})
    claim(run, 0)
    for step in (10, 20):
        head = {"format": 2, "step": step, "attempt": 0, "world_size": 1, "kind": "permanent"}
        run.write_text(layout.manifest(step), json.dumps(head, separators=(",", ":")))
    ago = time.time() - seconds_ago
    record = OutcomeRecord(outcome="stopped", reason="stop", attempt=0, step=20, time=ago)
    run.write_outcome(record)
    run.write_outcome(record, of_run=True)
    register(run_id, "over", run.url)
    return run


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every run that is judged."""
    heard: list[str] = []

    def judge(run: RunDir) -> RunState:
        heard.append(run.url.rsplit("/", 1)[-1])
        return state_of(run)

    monkeypatch.setattr(states, "state_of", judge)
    return heard


def test_a_run_that_is_over_is_judged_once(tmp_path: Path, judged: list[str]) -> None:
    for name in ("a-1111", "b-2222"):
        ended(tmp_path, name)
    ended(tmp_path, "c-3333", seconds_ago=5.0)  # something of it may still live
    first = overview()
    assert judged == ["a-1111", "b-2222", "c-3333"]
    assert overview() == first and judged[3:] == ["c-3333"]
    assert [(one.state, one.checkpoint) for one in first] == [("stopped", 20)] * 3


def other_run(run: RunDir) -> None:
    shutil.rmtree(run.url)
    ended(Path(run.url).parent, "a-1111")
    run.write_json(layout.PLAN, {"run_id": "b-2222", "name": "over", "scheduler": "local"})


def submit(run: RunDir) -> None:
    number = run.submit(Submission(backend="local", submitted=time.time(), nproc_per_node=1, device="cpu"))
    run.accepted(number, "7")


CHANGES: dict[str, Callable[[RunDir], object]] = {
    "resumed": lambda run: (run.clear_outcome(), claim(run, 1)),
    "a further attempt": lambda run: claim(run, 1),
    "in a queue": submit,
    "another outcome": lambda run: run.write_outcome(
        OutcomeRecord(outcome="completed", reason="done", attempt=0, step=20, time=1.0), of_run=True
    ),
    "a checkpoint removed": lambda run: shutil.rmtree(run.path(run.checkpoint_dir(20))),
    "gone back": lambda run: run.write_json(layout.ROLLBACKS, {"rollbacks": [{"attempt": 1, "step": 10}]}),
    "gone": lambda run: shutil.rmtree(run.url),
    "another run in its place": other_run,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_seen_as_if_nothing_had_been_kept(tmp_path: Path, change: str) -> None:
    run = ended(tmp_path, "a-1111")
    ended(tmp_path, "z-9999")
    overview()
    overview()
    CHANGES[change](run)
    seen = overview()
    (user_cache_folder() / FILE).unlink()
    assert seen == overview()


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"maker": ["0", []], "runs": {"a": 1}})])
def test_a_damaged_file_or_that_of_another_version_is_made_again(tmp_path: Path, text: str, judged: list[str]) -> None:
    ended(tmp_path, "a-1111")
    expected = overview()
    (user_cache_folder() / FILE).write_text(text)
    assert overview() == expected == overview() and len(judged) == 2
