"""Finding runs by what people type, and telling their state from the run directory."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from launchyard.errors import UserError
from launchyard.host.processes import started_at
from launchyard.launcher.runs import registry
from launchyard.launcher.runs.find import find, reach_run
from launchyard.launcher.runs.overview.states import overview
from launchyard.launcher.runs.registry import known_ids, new_run_id, register
from launchyard.launcher.runs.state import state_of
from launchyard.launcher.submit.launch import check_free
from launchyard.run import tail
from launchyard.run.append import Appender
from launchyard.run.records import Job, OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.run.tail import last_rows
from launchyard.storage.options import StoreOptions
from tests.support.standin import make_run


@pytest.fixture(autouse=True)
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def registered(folder: Path, *names: str) -> list[RunDir]:
    made = []
    for run_id in names:
        run = make_run(folder, run_id=run_id)
        register(run_id, run_id.rpartition("-")[0], run.url)
        made.append(run)
    return made


def claim(run: RunDir, attempt: int, *, alive: bool, **overrides: Any) -> Job:
    pid = os.getpid()
    started = started_at(pid) or 0.0
    job = Job(
        attempt=attempt, backend="local", job_id="1", host=socket.gethostname(), pid=pid,
        pid_started=started if alive else started - 100, created=time.time(), nnodes=1, nproc_per_node=1, device="cpu",
        overrides=overrides,
    )  # fmt: skip
    run.claim_attempt(job)
    return job


def rows(run: RunDir, attempt: int, steps: range, *, start: int) -> None:
    Appender(run, f"{run.attempt_dir(attempt)}/events").add({"event": "started", "step": start, "time": time.time()})
    appender = Appender(run, f"metrics/steps-{attempt:04d}", flush_seconds=1e9)
    for step in steps:
        row = {"step": step, "loss": 1.0, "step_seconds": 0.5, "tokens_per_second": 10.0, "attempt": attempt, "time": 1}
        appender.add(row)
    appender.flush()


# -- finding ---------------------------------------------------------------------------------------------------------
def test_find_by_every_name(tmp_path: Path) -> None:
    first, second, other = registered(tmp_path, "gpt-abcd", "gpt-wxyz", "llama-7777")
    assert find("gpt-abcd").url == first.url
    assert find("gpt-a").url == first.url, "unique beginning"
    assert find("wxyz").url == second.url, "its end"
    assert find("yz").url == second.url
    assert find("gpt").url == second.url, "newest of that name"
    assert find("latest").url == find("last").url == other.url
    assert find(other.url).url == other.url
    assert find(f"file://{other.url}").url == other.url


def test_find_refuses_what_is_ambiguous_or_unknown(tmp_path: Path) -> None:
    registered(tmp_path, "gpt-abcd", "gpt-abxy", "llama-7777")
    with pytest.raises(UserError, match="gpt-abcd, gpt-abxy"):
        find("gpt-ab")
    with pytest.raises(UserError, match="did you mean llama-7777"):
        find("lama-7777")
    with pytest.raises(UserError, match="no run there"):
        find(str(tmp_path))
    with pytest.raises(UserError, match="no such run"):
        find("zzz")


def test_latest_without_runs() -> None:
    with pytest.raises(UserError, match="no run has been launched"):
        find("latest")
    assert overview() == []


def test_deleted_runs_are_left_out(tmp_path: Path) -> None:
    first, second = registered(tmp_path, "a-1111", "a-2222")
    shutil.rmtree(second.url)
    assert [entry.run_id for entry in overview()] == ["a-1111"]
    assert find("latest").url == first.url and find("a").url == first.url
    with pytest.raises(UserError, match="gone"):
        find("a-2222")


def test_a_run_in_the_place_of_another_is_not_that_one(tmp_path: Path) -> None:
    first, second = registered(tmp_path, "a-1111", "b-2222")
    shutil.rmtree(first.url)
    shutil.copytree(second.url, first.url)
    assert [entry.run_id for entry in overview()] == ["b-2222"]
    assert find("latest").url == second.url
    with pytest.raises(UserError, match="gone"):
        find("a-1111")


def test_a_damaged_registry_entry_harms_nobody(tmp_path: Path) -> None:
    registered(tmp_path, "a-1111")
    (tmp_path / "state/launchyard/runs/b-2222.json").write_text("{")
    assert [entry.run_id for entry in overview()] == ["a-1111"]


def test_a_store_that_does_not_answer_stops_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens at port 9 of loopback. Its runs are asked for at the same time, and known all the same."""
    registered(tmp_path, "a-1111")
    store = StoreOptions(endpoint_url="http://127.0.0.1:9", region="us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    far = [f"far-{n}{n}{n}{n}" for n in range(1, 7)]
    for run_id in far:
        register(run_id, "far", f"s3://bucket/{run_id}", store=store)
    began = time.monotonic()
    states = {state.run_id: state.state for state in overview()}
    assert states == {"a-1111": "pending", **dict.fromkeys(far, "unreachable")}
    assert time.monotonic() - began < 4 * registry.GLANCE_SECONDS, "one after another it would be 6 times"
    assert known_ids() == ["a-1111", *far]


def test_a_run_brings_its_store_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[StoreOptions]()
    monkeypatch.setattr("launchyard.storage.files.set_store_options", asked.append)
    _, there = registered(tmp_path, "a-1111", "b-2222")
    store = StoreOptions(endpoint_url="http://127.0.0.1:9", profile="p", credentials_file="/c")
    register("b-2222", "b", there.url, store=store)
    for name in ("b-2222", there.url):
        find(name)
        assert asked[-1] == store
    find("a-1111")
    assert asked[-1] == StoreOptions(), "and the next one its own"
    reach_run(there)
    assert asked[-1] == store, "and so does one that was found before it"


def test_registry_is_private_and_ids_are_new(tmp_path: Path) -> None:
    registered(tmp_path, "a-1111")
    (entry,) = (tmp_path / "state/launchyard/runs").iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    ids = {new_run_id("my-run.v2") for _ in range(200)}
    assert len(ids) > 195 and all(run_id.startswith("my-run.v2-") and len(run_id) == 14 for run_id in ids)


# -- state -----------------------------------------------------------------------------------------------------------
def test_states_of_a_life(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert (state_of(run).state, state_of(run).resumable) == ("pending", True)
    claim(run, 0, alive=True)
    assert (state_of(run).state, state_of(run).alive) == ("starting", True)
    rows(run, 0, range(1, 31), start=0)
    state = state_of(run)
    assert (state.state, state.step, state.max_steps, state.eta_seconds) == ("running", 30, 1000, 485.0)
    Appender(run, "attempts/0000/events").add({"event": "stopping", "step": 30, "reason": "stop", "time": 1})
    assert state_of(run).state == "saving"
    record = OutcomeRecord(outcome="stopped", reason="stop", attempt=0, step=30, checkpoint="x", time=5.0)
    run.write_outcome(record)
    run.write_outcome(record, of_run=True)
    assert (state_of(run).state, state_of(run).reason, state_of(run).since) == ("stopped", "stop", 5.0)


def test_a_dead_owner_without_a_word_is_lost(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    claim(run, 0, alive=False)
    rows(run, 0, range(1, 31), start=0)
    state = state_of(run)
    assert (state.state, state.resumable, state.alive, state.step) == ("lost", True, False, 30)


def test_an_old_outcome_says_nothing_about_a_newer_attempt(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    claim(run, 0, alive=False)
    record = OutcomeRecord(outcome="stopped", reason="stop", attempt=0, step=30, time=5.0)
    run.write_outcome(record, of_run=True)
    claim(run, 1, alive=True)
    assert state_of(run).state == "starting"


def test_step_of_an_attempt_that_went_back(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    claim(run, 0, alive=False)
    rows(run, 0, range(1, 31), start=0)
    claim(run, 1, alive=True)
    rows(run, 1, range(0), start=20)
    assert state_of(run).step == 20


def test_max_steps_follows_overrides(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    claim(run, 0, alive=True, **{"train.max_steps": 77})
    assert state_of(run).max_steps == 77


def test_last_row_of_a_long_run_reads_only_its_end(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    claim(run, 0, alive=True)
    rows(run, 0, range(1, 3001), start=0)
    assert os.path.getsize(run.path("metrics/steps-0000.jsonl")) > 3 * tail._LAST_BYTES
    row = last_rows(run, [0])[-1]
    assert row is not None and row["step"] == 3000
    with open(run.path("metrics/steps-0000.jsonl"), "a") as file:
        file.write('{"step": 3001, "lo')
    assert last_rows(run, [0])[-1] == row, "a row that a kill cut short does not count"


@pytest.mark.parametrize("place", ["{folder}", "memory://{name}/run"])
def test_a_place_with_other_files_is_not_free(place: str, tmp_path: Path) -> None:
    run = RunDir(place.format(folder=tmp_path / "run", name=tmp_path.name))
    assert run.listdir("") == []
    check_free(run)
    run.write_text("notes.txt", "mine")
    assert run.listdir("") == ["notes.txt"]
    with pytest.raises(UserError, match="not empty, and not a run"):
        check_free(run)
