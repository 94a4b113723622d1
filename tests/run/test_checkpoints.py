"""All readers of a run mean the same checkpoint, whatever its attempts have done to each other."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.launcher.cli.main import main
from launchyard.launcher.runs.checkpoints import list_saved
from launchyard.launcher.runs.state import state_of
from launchyard.model.weights.source import find_source
from launchyard.run import checkpoints
from launchyard.run.checkpoints import RunCheckpoints, newest_checkpoint
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from launchyard.storage.shards import MANIFEST, Manifest, ManifestHead, read_head, sealed
from launchyard.training.artifacts import _newest
from tests.training.checkpoint.test_checkpointer import IDENTITY, checkpointer, claim


@dataclass
class History:
    """A run that lives by the rules of the Checkpointer, but for a commit that comes after its attempt was replaced."""

    run: RunDir
    starts: list[int | None] = field(default_factory=list)
    commits: dict[int, int] = field(default_factory=dict)  # step -> attempt

    def counting(self) -> list[int]:
        """The rule in full, from all that is known: oldest first."""
        return sorted(
            step
            for step, attempt in self.commits.items()
            if all(start is None or start >= step for start in self.starts[attempt + 1 :])
        )

    def start(self, *, gets_far: bool) -> None:
        attempt = len(self.starts)
        claim(self.run, attempt)
        start = max(self.counting(), default=0)
        self.starts.append(start if gets_far else None)
        if gets_far:
            event = {"event": "started", "step": start, "time": 1.0}
            self.run.write_text(f"{self.run.attempt_dir(attempt)}/events.jsonl", json.dumps(event) + "\n")

    def commit(self, attempt: int, ahead: int) -> None:
        start = self.starts[attempt]
        if start is None:
            return
        step = start + ahead
        if self.commits.get(step, -1) >= attempt:
            return
        self.commits[step] = attempt
        self.run.write_text(f"{self.run.checkpoint_dir(step)}/{MANIFEST}", sealed(manifest(step, attempt)))


def manifest(step: int, attempt: int) -> Manifest:
    facts: dict[str, Any] = {"world_size": 1, "kind": "permanent", "created": 0.0, "train_state": {}, "versions": {}}
    return Manifest(
        step=step,
        attempt=attempt,
        model=IDENTITY.model,
        data_digest="d",
        recipe_hash="r",
        files={},
        tensors={},
        **facts,
    )


def resumes_from(run: RunDir, attempt: int) -> int | None:
    reader = checkpointer(run, attempt=attempt)
    reader._load = lambda *_: None  # type: ignore[method-assign]  # which one, not what is in it
    found = reader.load_newest({})
    return found.step if found is not None else None


def step_loaded(run: RunDir) -> int | None:
    """Of load, generate, export and init_from."""
    try:
        return int(os.path.basename(find_source(run.url).folder).removeprefix("step-"))
    except FileNotFoundError:
        return None


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.booleans()),
        st.tuples(st.just("commit"), st.integers(0, 3), st.integers(1, 4)),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(ACTIONS)
def test_all_readers_mean_the_same_checkpoint(actions: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        history = History(RunDir(folder))
        history.run.write_text("plan.json", "{}")
        history.start(gets_far=True)
        for name, *given_ in actions:
            if name == "start":
                history.start(gets_far=given_[0])
            else:  # of the newest attempt, or of one that was replaced
                history.commit(max(0, len(history.starts) - 1 - given_[0]), given_[1])
        check(history)


def check(history: History) -> None:
    run, counting = history.run, history.counting()
    want = counting[-1] if counting else None
    saved = list_saved(run)
    assert newest_checkpoint(run) == want
    assert resumes_from(run, len(history.starts)) == want
    assert state_of(run).checkpoint == want
    assert step_loaded(run) == want
    assert [one.step for one in saved] == sorted(history.commits)
    assert [one.step for one in saved if not one.late] == counting
    if want is not None:
        assert _newest(run) == run.path(run.checkpoint_dir(want))


@pytest.fixture
def late(tmp_path: Path) -> History:
    """Attempt 0 committed step 2, and step 3 after attempt 1 had gone on from 2."""
    history = History(RunDir(str(tmp_path / "run")))
    history.run.write_text("plan.json", "{}")
    history.start(gets_far=True)
    history.commit(0, 2)
    history.start(gets_far=True)
    history.commit(0, 3)
    return history


def test_a_late_one_is_listed_as_such(late: History, capsys: pytest.CaptureFixture[str]) -> None:
    check(late)
    with pytest.raises(SystemExit) as end:
        main(["checkpoints", late.run.url])
    said = capsys.readouterr()
    assert end.value.code == 0, "it is not damaged"
    assert [line.split()[:2] for line in said.out.splitlines()[1:]] == [["2", "permanent"], ["3", "late"]]
    assert "step 3: attempt 0 committed it after attempt 1 had gone on from step 2" in said.err


def test_it_stays_late_when_the_run_has_gone_beyond_it(late: History) -> None:
    late.commit(1, 2)
    late.start(gets_far=True)
    assert late.starts[-1] == 4
    check(late)


def test_a_damaged_one_that_an_attempt_passed_over_is_not_called_late(late: History) -> None:
    event = {"event": "fell back", "step": 3, "time": 0.5}
    name = f"{late.run.attempt_dir(1)}/events.jsonl"
    late.run.write_text(name, json.dumps(event) + "\n" + late.run.read_text(name))
    assert RunCheckpoints(late.run).late(3) == "attempt 1 found it damaged and went on from step 2"


def test_where_all_are_late_the_run_begins_anew(tmp_path: Path) -> None:
    history = History(RunDir(str(tmp_path)))
    history.start(gets_far=True)
    history.start(gets_far=True)
    history.commit(0, 3)
    history.run.write_text("plan.json", "{}")
    check(history)
    assert newest_checkpoint(history.run) is None


def test_the_newest_is_found_with_few_small_reads(late: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no manifest more than its beginning, and no events of attempts before the one that committed it."""
    for _ in range(5):
        late.commit(1, 4)
        late.start(gets_far=True)
    late.commit(len(late.starts) - 1, 5)
    read = list[tuple[str, int | None]]()
    real = files.read

    def spy(path: str, start: int = 0, length: int | None = None) -> bytes:
        read.append((path.removeprefix(late.run.url), length))
        return real(path, start, length)

    monkeypatch.setattr(files, "read", spy)
    assert newest_checkpoint(late.run) == max(late.commits)
    assert [length for path, length in read if path.endswith(MANIFEST)] == [512]
    assert not [path for path, _ in read if "events" in path]


def test_events_of_an_attempt_are_those_of_all_its_parts(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    run.write_text("attempts/0000/events.jsonl", '{"event": "started", "step": 0, "time": 1}\n')
    run.write_text("attempts/0000/events.0001.jsonl", '{"event": "saved", "step": 1, "time": 2}\n{"event": "cut')
    assert sorted(event["event"] for event in run.events(0)) == ["saved", "started"]


@pytest.mark.parametrize("flipped", [{"run_id": "chaos,run"}, {"attempt": 0}])
def test_none_is_passed_over_by_a_bit_that_flips_on_the_way(
    flipped: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The beginning of a manifest has no seal: what it says against a checkpoint is asked of the whole one."""
    history = History(RunDir(str(tmp_path)))
    history.run.write_json("plan.json", {"run_id": "chaos-run"})
    for _ in range(2):
        history.start(gets_far=True)
        history.commit(len(history.starts) - 1, 3)
    assert history.starts == [0, 3] and set(history.commits) == {3, 6}
    claim(history.run, 2)
    read = read_head

    def read_flipped(folder: str) -> ManifestHead:
        head = read(folder)
        assert head is not None
        return replace(head, **flipped)

    monkeypatch.setattr(checkpoints, "read_head", read_flipped)
    found = RunCheckpoints(history.run)
    assert list(found.counting()) == [6, 3] and not found.foreign(6) and found.missing() is None


def test_a_damaged_one_is_no_foreign_one(tmp_path: Path) -> None:
    """It is for loading to say what is wrong with it."""
    history = History(RunDir(str(tmp_path)))
    history.run.write_json("plan.json", {"run_id": "chaos-run"})
    history.start(gets_far=True)
    history.commit(0, 3)
    path = Path(history.run.path(f"{history.run.checkpoint_dir(3)}/{MANIFEST}"))
    path.write_text(path.read_text().replace('"run_id":""', '"run_id":"x"'))
    found = RunCheckpoints(history.run)
    assert found.newest() == 3 and not found.foreign(3)
