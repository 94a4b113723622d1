"""One look at a run in a store: the same answer as by asking for everything, and as many requests for any run."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launchyard.launcher.runs.overview.look import Look, look_at
from launchyard.launcher.runs.state import state_of
from launchyard.run import events, layout
from launchyard.run.records import Job, OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.storage.stores.fsspec import FsspecStore

CALLS = ("exists", "size", "age", "listdir", "read")


def lines(run: RunDir, stem: str, part: int, *rows: dict[str, object]) -> None:
    run.write_text(layout.grown_part(stem, part), "".join(f"{json.dumps(row)}\n" for row in rows))


def make_run(folder: Path, *, attempts: int = 2, each: int = 3, over: bool = True) -> RunDir:
    """As it lies in a store, with `each` checkpoints an attempt."""
    run = RunDir(str(folder))
    run.write_json(layout.PLAN, {"run_id": "made", "name": "made", "scheduler": "local", "max_steps": 1000})
    step = 0
    for attempt in range(attempts):
        facts = {"host": "elsewhere", "pid": 1, "pid_started": 0.0, "created": 1.0, "nproc_per_node": 1}
        job = {"attempt": attempt, "backend": "local", "job_id": "1", "device": "cpu", **facts}
        run.claim_attempt(Job.model_validate(job))
        told: list[dict[str, object]] = [{"event": events.STARTED, "step": step, "time": 1.0, "source": "disk"}]
        for _ in range(each):
            step += 1
            head = {"format": 2, "step": step, "attempt": attempt, "run_id": "made", "world_size": 1, "kind": "best"}
            run.write_text(layout.manifest(step), json.dumps(head, separators=(",", ":")))
            told.append({"event": events.SAVED, "step": step, "time": 1.0})
        ended = over or attempt < attempts - 1
        lines(run, layout.events(attempt), 0, *told, *([{"event": events.FINISHED, "step": step, "time": 2.0}] * ended))
        row = {
            "step": step,
            "attempt": attempt,
            "time": 1.0,
            "loss": 2.0,
            "tokens_per_second": 3.0,
            "step_seconds": 1.0,
        }
        lines(run, layout.rows(layout.STEPS, attempt), 0, row)
        run.write_json(layout.heartbeat(attempt), {"time": time.time(), "host": "elsewhere", "pid": 1})
    run.write_json(layout.LATEST, {"step": step})
    if over:
        record = OutcomeRecord(
            outcome="stopped", reason="stop", attempt=attempts - 1, step=step, time=1.0,
            checkpoint=run.checkpoint_dir(step),
        )  # fmt: skip
        run.write_outcome(record, of_run=True)
    return run


def in_store(run: RunDir) -> RunDir:
    return RunDir(f"local://{run.url}")


def requests(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> int:
    asked = []
    with monkeypatch.context() as patch:
        for name in CALLS:
            real = getattr(FsspecStore, name)
            patch.setattr(
                FsspecStore, name, lambda *given, _real=real, **more: (asked.append(given[1]), _real(*given, **more))[1]
            )
        state_of(look_at(in_store(run)))
    return len(asked)


@pytest.mark.parametrize(("over", "limit"), [(True, 9), (False, 10)])
def test_requests_do_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: bool, limit: int) -> None:
    sizes = [(1, 1), (2, 30), (20, 2)]
    made = [make_run(tmp_path / f"{n}-{each}", attempts=n, each=each, over=over) for n, each in sizes]
    assert [requests(run, monkeypatch) for run in made] == [limit] * len(sizes)


def test_a_listing_that_tells_ages_spares_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of S3 does: the age of the heartbeat goes on with time, and is asked of nobody."""
    run = make_run(tmp_path / "run", over=False)
    old = dict.fromkeys(in_store(run).listdir(layout.attempt_folder(1)), 70.0)
    listed = FsspecStore.list_ages
    monkeypatch.setattr(
        FsspecStore, "list_ages", lambda self, path: old if path.endswith("0001") else listed(self, path)
    )
    monkeypatch.setattr(FsspecStore, "age", None)
    look = look_at(in_store(run))
    look.listdir(layout.attempt_folder(1))
    assert 70.0 <= look.age(layout.heartbeat(1)) < 100.0
    with pytest.raises(FileNotFoundError):
        look.age(layout.outcome(1))
    assert state_of(look_at(in_store(run))).state == "lost"


def rewound(run: RunDir) -> None:
    told = [{"event": events.STARTED, "step": 3, "time": 1.0}, {"event": events.SAVED, "step": 6, "time": 1.0}]
    lines(run, layout.events(1), 0, *told, {"event": events.REWOUND, "step": 4, "time": 2.0})
    shutil.rmtree(run.path(run.checkpoint_dir(6)))


CHANGES: dict[str, Callable[[RunDir], object]] = {
    "nothing": lambda run: None,
    "the newest checkpoint is gone": lambda run: shutil.rmtree(run.path(run.checkpoint_dir(6))),
    "gone back": lambda run: run.write_json(layout.ROLLBACKS, {"rollbacks": [{"attempt": 2, "step": 2}]}),
    "the newest is foreign": lambda run: run.write_text(
        layout.manifest(6), '{"format":2,"step":6,"attempt":1,"run_id":"other","world_size":1,"kind":"best"}'
    ),
    "a folder without a claim": lambda run: run.write_json(layout.heartbeat(2), {"time": 1.0}),
    "events in two parts": lambda run: lines(run, layout.events(1), 1, {"event": events.STOPPING, "time": 3.0}),
    "rewound": rewound,
    "no checkpoint at all": lambda run: shutil.rmtree(run.path(layout.CHECKPOINTS)),
    "the outcome taken back": lambda run: in_store(run).clear_outcome(),
}


@pytest.mark.parametrize("over", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_it_sees_what_is_there(tmp_path: Path, change: str, over: bool) -> None:
    run = make_run(tmp_path / "run", over=over)
    CHANGES[change](run)
    if change == "events in two parts" and over:
        pytest.skip("nothing follows the end")
    assert state_of(look_at(in_store(run))) == state_of(in_store(run))


def test_a_run_of_this_disk_is_looked_at_as_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert look_at(run) is run
    look = look_at(in_store(run))
    assert isinstance(look, Look) and look_at(look) is look
