"""Runs whose steps are traced: the traces are whole, and the training is what it is without."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from launchyard.host.environment import SCRATCH
from launchyard.launcher.agent.profile_request import ProfileRequests
from launchyard.launcher.report.profiles import list_profiles
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.training.profile.ranges import ModuleRanges
from launchyard.training.spec import DataSpec
from launchyard.training.telemetry.phases import PHASES
from tests.support.small_runs import final_weights, history, make_run, run_workers, start_workers, write_data

WINDOWS = {"profile": {"steps": [[1, 2], [6, 8], [24, 24]], "memory": True, "shapes": True}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, data: DataSpec) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("plain") / "run", data)
    run_workers(run, 1)
    return run


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, data: DataSpec) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("traced") / "run", data, WINDOWS)
    run_workers(run, 1)
    return run


def same(one: RunDir, other: RunDir) -> bool:
    mine, theirs = final_weights(one), final_weights(other)
    return history(one) == history(other) and all(torch.equal(mine[key], theirs[key]) for key in mine | theirs)


def trace_of(run: RunDir, step: int, rank: int = 0) -> dict[str, Any]:
    raw = gzip.decompress(run.read_bytes(layout.profile(step, rank) + layout.TRACE))
    trace: dict[str, Any] = json.loads(raw)
    return trace


def ranges_of(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]


def test_losses_and_weights_are_those_of_a_run_without(plain: RunDir, traced: RunDir) -> None:
    assert same(plain, traced)
    assert not plain.exists(layout.PROFILES)


def test_each_window_is_a_trace(traced: RunDir) -> None:
    found = list_profiles(traced)
    assert [(one.first, one.last, one.rank) for one in found] == [(1, 2, 0), (6, 8, 0), (24, 24, 0)]
    told = sorted((event["step"], event["last"]) for event in traced.events(0) if event["event"] == "profiled")
    assert told == [(1, 2), (6, 8), (24, 24)], "the last one is written before the run has ended"
    for one in found:
        assert "forward_backward" in traced.read_text(one.table) and "aten::" in traced.read_text(one.table)
        assert {"blocks.*.attention", "embed"} <= {module["name"] for module in one.summary["modules"]}


def test_a_trace_opens_in_perfetto(traced: RunDir) -> None:
    """It is Chrome's JSON: complete events have a time, a length and a thread, and those of a thread lie within each
    other or apart."""
    trace = trace_of(traced, 6)
    threads: dict[Any, list[tuple[float, float]]] = defaultdict(list)
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str) and event["ph"] in "XiMCsf"
        if event["ph"] == "X" and event["cat"] != "Trace":
            assert event["dur"] >= 0
            threads[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert threads
    for found in threads.values():
        within: list[float] = []
        for start, end in sorted(found, key=lambda one: (one[0], -one[1])):
            while within and within[-1] <= start:
                within.pop()
            assert not within or end <= within[-1] + 1e-3, "one range ends after the one that it began in"
            within.append(end)


def test_a_trace_has_its_steps_phases_and_modules(traced: RunDir) -> None:
    found = ranges_of(trace_of(traced, 6))
    steps = sorted((one for one in found if one["name"].startswith("step ")), key=lambda one: one["ts"])
    assert [one["name"] for one in steps] == ["step 6", "step 7", "step 8"]
    assert all(one["ts"] + one["dur"] <= other["ts"] for one, other in itertools.pairwise(steps))
    for step in steps:
        inside = {one["name"] for one in found if step["ts"] <= one["ts"] < step["ts"] + step["dur"]}
        assert {"data_wait", "collective_wait", "forward_backward", "optimizer", "other"} <= inside & set(PHASES)
        assert {"module blocks.0.attention.q_proj", "module blocks.1.mlp", "module embed"} <= inside


def test_only_what_is_asked_for_is_in_it(tmp_path: Path, data: DataSpec, traced: RunDir) -> None:
    run = make_run(tmp_path / "run", data, {"profile": {"steps": [6, 6]}, "train.max_steps": 6})
    run_workers(run, 1)
    kinds = [
        {key for event in trace_of(one, 6)["traceEvents"] for key in (event["name"], *event.get("args", {}))}
        for one in (run, traced)
    ]
    for words in ({"[memory]", "CPU memory"}, {"Input Dims"}):
        assert not words & kinds[0] and words <= kinds[1]


def test_killed_in_a_window_and_resumed(tmp_path: Path, data: DataSpec, plain: RunDir) -> None:
    """Nothing of it is left, and the attempt that goes on traces the steps that it makes."""
    run = make_run(tmp_path / "run", data, {"profile": {"steps": [4, 24]}})
    (process,) = start_workers(run, 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(run.attempt_rows("steps", 0))) < 12:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list_profiles(run) == []
    run_workers(run, 1)
    start = run.starts()[1]
    assert [(one.first, one.last, one.attempt) for one in list_profiles(run)] == [(max(start + 1, 4), 24, 1)]
    assert same(plain, run)


def test_a_resume_past_the_window_traces_nothing(tmp_path: Path, data: DataSpec) -> None:
    run = make_run(tmp_path / "run", data)
    run_workers(run, 1, {"train.max_steps": 10})
    run_workers(run, 1, {"train.max_steps": 12, "profile": {"steps": [8, 10]}})
    assert not run.exists(layout.PROFILES)
    assert not [event for event in run.events(1) if "profiled" in event["event"]]


def test_a_live_run_is_asked_through_its_agent(tmp_path: Path, data: DataSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that have passed by then are made up for; a request to another attempt is none."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv(SCRATCH, str(scratch))
    run = make_run(tmp_path / "run", data, {"train.max_steps": 2000, "checkpoint.every_steps": 500})
    request = {"steps": [3, 5], "ranks": [0], "time": 1.0}
    run.write_json(layout.PROFILE_REQUEST, {**request, "attempt": 7})
    (process,) = start_workers(run, 1)
    agent = ProfileRequests(run, 0, str(scratch))
    agent.poll()
    assert not list(scratch.glob("profile*"))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list_profiles(run):
        if len(list(run.attempt_rows("steps", 0))) > 10:
            run.write_json(layout.PROFILE_REQUEST, {**request, "attempt": 0})
        agent.poll()
        time.sleep(0.05)
    process.kill()
    process.wait()
    (found,) = list_profiles(run)
    assert found.first > 10 and found.last == found.first + 2


def test_a_request_that_makes_no_sense_is_told(
    tmp_path: Path, data: DataSpec, plain: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "profile").write_text('{"steps": 5}')
    monkeypatch.setenv(SCRATCH, str(scratch))
    run = make_run(tmp_path / "run", data, {"profile": {"steps": [3, 5]}})
    run_workers(run, 1)
    (event,) = [event for event in run.events(0) if event["event"] == "not profiled"]
    assert "5 is no window" in event["message"]
    assert [one.first for one in list_profiles(run)] == [3] and same(plain, run)


def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path: Path, data: DataSpec, plain: RunDir) -> None:
    run = make_run(tmp_path / "run", data, {"profile": {"steps": [3, 5]}})
    run.write_text(layout.PROFILES, "a file where the folder would be")
    run_workers(run, 1)
    (event,) = [event for event in run.events(0) if event["event"] == "not profiled"]
    assert "step-0003-rank-0" in event["message"]
    assert same(plain, run)


@pytest.mark.slow
def test_two_ranks_are_traced_apart(tmp_path: Path, data: DataSpec) -> None:
    """Each by itself, or one alone; and both are what they are without."""
    runs = [make_run(tmp_path / name, data) for name in ("plain", "both", "second")]
    for run, ranks in zip(runs, (None, "all", [1]), strict=True):
        run_workers(run, 2, {"profile": ranks and {"steps": [6, 7], "ranks": ranks}})
    assert [[one.rank for one in list_profiles(run)] for run in runs] == [[], [0, 1], [1]]
    assert all(same(runs[0], run) for run in runs[1:])
    assert "collective_wait" in {one["name"] for one in ranges_of(trace_of(runs[1], 6, rank=1))}


@pytest.mark.slow
def test_a_model_that_is_recomputed(tmp_path: Path, data: DataSpec) -> None:
    """Recomputation leaves a forward by an exception; its range ends all the same."""
    runs = [make_run(tmp_path / name, data, {"parallel.activation_checkpointing": "full"}) for name in ("a", "b")]
    run_workers(runs[0], 1)
    run_workers(runs[1], 1, {"profile": {"steps": [6, 8]}})
    assert same(*runs)
    steps = [one["name"] for one in ranges_of(trace_of(runs[1], 6)) if one["name"].startswith("step ")]
    assert sorted(steps) == ["step 6", "step 7", "step 8"]


def test_compiled_blocks_get_no_hooks() -> None:
    """They would be compiled anew, in the midst of training."""
    model = nn.ModuleDict({"embed": nn.Linear(2, 2), "blocks": nn.ModuleList([nn.Linear(2, 2)])})
    ranges = ModuleRanges(model, compiled=True)
    hooked = [name for name, module in model.named_modules() if module._forward_hooks]
    ranges.remove()
    assert hooked == ["embed"]
    assert not any(module._forward_hooks for module in model.modules())
