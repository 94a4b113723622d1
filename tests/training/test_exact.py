"""The claim of the whole: a run that was killed, stopped or resized is the run that was not.

Workers are started as the agent starts them, torchrun aside; kills take every process at once, at any instant.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from launchyard.model.zoo import config_from_hf
from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.training.data.dataset_spec import mix
from launchyard.training.spec import DataSpec
from tests.support.architectures import ARCHITECTURES
from tests.support.small_runs import final_weights, history, make_run, run_workers, start_workers, write_data

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "head_dim": 8}


def family(name: str) -> dict[str, Any]:
    """What a recipe has in place of the usual small model: experts, windows, sinks, latents; recomputed."""
    shape = config_from_hf({**ARCHITECTURES[name], **SMALL}).model_dump(mode="json", exclude_none=True)
    return {"model": shape, "parallel.activation_checkpointing": "full"}


LONG = {"train.max_steps": 120, "checkpoint.every_steps": 7, "validation.every_steps": 50}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


def undisturbed(folder: Path, data: DataSpec, nproc: int, overrides: dict[str, Any]) -> RunDir:
    run = make_run(folder, data, overrides)
    run_workers(run, nproc)
    return run


def kill_one_attempt(run: RunDir, nproc: int, rng: random.Random, *, saved: bool = False) -> int | None:
    """SIGKILL for all workers at once: one time in four while they start, else while they train.

    saved: not before there is a checkpoint.

    The step from which the attempt had gone on; None if it was killed before.
    """
    processes = start_workers(run, nproc)
    if rng.random() < 0.25 and not saved:
        time.sleep(rng.uniform(0.2, 2.0))
    else:
        steps = rng.randrange(30)
        while all(process.poll() is None for process in processes) and steps_of(run, run.attempts()[-1]) < steps:
            time.sleep(0.005)
        while saved and not committed_steps(run) and all(process.poll() is None for process in processes):
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.1))
    for process in processes:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()
    return started(run)


def steps_of(run: RunDir, attempt: int) -> int:
    return sum(row["attempt"] == attempt for row in run.rows("steps"))


def started(run: RunDir) -> int | None:
    """The step from which the newest attempt went on."""
    return next((int(e["step"]) for e in run.events(run.attempts()[-1]) if e["event"] == "started"), None)


def assert_same_run(one: RunDir, other: RunDir) -> None:
    assert history(one) == history(other)
    assert list_validation(one) == list_validation(other)
    mine, theirs = final_weights(one), final_weights(other)
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert torch.equal(mine[key], theirs[key]), key


def list_validation(run: RunDir) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in run.rows("validation")]


def check_kills(tmp_path: Path, data: DataSpec, nproc: int, kills: int, *, model: dict[str, Any]) -> None:
    overrides = {**LONG, **model}
    expected = undisturbed(tmp_path / "undisturbed", data, nproc, overrides)
    run, rng = make_run(tmp_path / "killed", data, overrides), random.Random(nproc)
    resumed: set[int | None] = set()
    for number in range(kills):
        if run.attempts() and run.outcome(run.attempts()[-1]):
            break
        resumed.add(kill_one_attempt(run, nproc, rng, saved=number == kills - 1))
    run_workers(run, nproc)
    resumed.add(started(run))
    assert resumed - {None, 0}, "no attempt went on from a checkpoint"
    assert_same_run(run, expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("nproc", [1, 2])
def test_killed_at_25_instants(tmp_path: Path, data: DataSpec, nproc: int) -> None:
    check_kills(tmp_path, data, nproc, kills=25, model={})


@pytest.mark.parametrize(
    ("name", "nproc"),
    [
        ("gpt-neox", 2),
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name in ("gpt-oss", "deepseek-v3", "gemma2")),
        pytest.param("gpt-neox", 1, marks=pytest.mark.slow),
    ],
)
def test_killed_at_a_few_instants(tmp_path: Path, data: DataSpec, name: str, nproc: int) -> None:
    check_kills(tmp_path, data, nproc, kills=2, model={} if name == "gpt-neox" else family(name))


@pytest.mark.slow
def test_a_stop_loses_no_step(tmp_path: Path, data: DataSpec) -> None:
    expected = undisturbed(tmp_path / "undisturbed", data, 2, LONG)
    run = make_run(tmp_path / "stopped", data, LONG)
    processes = start_workers(run, 2)
    deadline = time.monotonic() + 60
    while not list(run.rows("steps")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGUSR1)  # one rank alone is told
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    outcome = run.outcome(0)
    assert outcome is not None and (outcome.outcome, outcome.reason) == ("stopped", "preempted")
    assert outcome.step == len(history(run)) < 120
    run_workers(run, 2)
    assert started(run) == outcome.step
    assert_same_run(run, expected)


@pytest.mark.slow
def test_the_last_validation_costs_no_step(tmp_path: Path) -> None:
    """The last step is saved before it is measured; a stop in between is taken, and a resume only measures."""
    data = write_data(tmp_path / "data", n_validation_tokens=80_000)
    expected = undisturbed(tmp_path / "undisturbed", data, 2, {})
    run = make_run(tmp_path / "stopped", data)
    processes = start_workers(run, 2)
    deadline = time.monotonic() + 60
    while ("saved", 24) not in events_of(run) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(processes[1].pid, signal.SIGUSR1)  # one rank alone is told
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    outcome = run.outcome(0)
    assert outcome is not None and (outcome.outcome, outcome.reason, outcome.step) == ("stopped", "preempted", 24)
    assert list_validation(run) == []
    run_workers(run, 2)
    outcome = run.outcome(1)
    assert outcome is not None and outcome.outcome == "completed"
    assert started(run) == 24 and not {name for name, _ in events_of(run)} & {"saved", "stopping"}
    assert [step for step, _ in list_validation(run)] == [24]
    assert_same_run(run, expected)


def events_of(run: RunDir) -> list[tuple[str, int | None]]:
    """What the newest attempt said: (event, step)."""
    return [(event["event"], event.get("step")) for event in run.events(run.attempts()[-1])]


def check_resizing(tmp_path: Path, data: DataSpec, worlds: list[int], *, model: dict[str, Any]) -> None:
    """Each world trains to a later step, the way a preemption resumes elsewhere."""
    overrides = {"train.max_steps": 50, **model}
    expected = undisturbed(tmp_path / "undisturbed", data, 1, overrides)
    run = make_run(tmp_path / "resized", data, overrides)
    share = 50 // len(worlds)
    for number, nproc in enumerate(worlds, start=1):
        last = 50 if number == len(worlds) else number * share
        # the schedule must not see the shorter length: the workers are stopped by the number of steps they may do
        run_workers_until(run, nproc, last)
    one, other = history(expected), history(run)
    assert [row[-1] for row in one] == [row[-1] for row in other], "another batch was seen"
    assert dict(list_validation(run)) == pytest.approx(dict(list_validation(expected)), rel=1e-4)
    assert [row[4] for row in one] == [row[4] for row in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine[1] == pytest.approx(theirs[1], rel=1e-5)
    mine, theirs = final_weights(expected), final_weights(run)
    for key in mine:  # Adam makes a part of a step of what rounding does to a gradient near zero
        torch.testing.assert_close(mine[key], theirs[key], rtol=1e-3, atol=5e-5)


def run_workers_until(run: RunDir, nproc: int, last: int) -> None:
    processes = start_workers(run, nproc)
    if last < 50:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any(row["step"] >= last for row in run.rows("steps")):
            time.sleep(0.005)
        os.kill(processes[0].pid, signal.SIGTERM)
    assert [process.wait(timeout=60) for process in processes] == [0] * nproc, run.errors(run.attempts()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt-neox", "deepseek-v3"])
def test_resized_from_1_to_2_to_3(tmp_path: Path, data: DataSpec, name: str) -> None:
    check_resizing(tmp_path, data, [1, 2, 3], model={} if name == "gpt-neox" else family(name))


@pytest.mark.slow
def test_a_mixture_resized_from_2_to_3_to_1(tmp_path: Path, data: DataSpec) -> None:
    """Sources of different sizes and weights; the small one has some epochs in this run."""
    small = write_data(tmp_path / "small", n_tokens=421, n_validation_tokens=90, seed=5)
    check_resizing(tmp_path, mix([data, small], [0.7, 0.3]), [2, 3, 1], model={})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_resized_1_2_3_4_6_and_back(tmp_path: Path, data: DataSpec) -> None:
    check_resizing(tmp_path, data, [1, 2, 3, 4, 6, 4, 3, 2, 1], model={})
