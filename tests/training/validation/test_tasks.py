"""Tasks while a run trains: the scores of its checkpoints, once a step whatever dies, and nothing else changed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launchyard.launcher.cli.main import main
from launchyard.run import events
from launchyard.run.rows import TasksPoint, values_of
from launchyard.run.rundir import RunDir
from launchyard.training.spec import DataSpec
from tests.model.evaluate.conftest import TEMPLATE, gemma_like, write_tasks
from tests.support.small_runs import (
    final_weights,
    history,
    make_run,
    run_workers,
    start_workers,
    write_data,
)

SHORT = {"train.max_steps": 12, "checkpoint.every_steps": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def asked(tasks: Path, *kinds: str, **more: Any) -> dict[str, Any]:
    names = [str(tasks / f"{kind}.yaml") for kind in kinds or ("choice",)]
    return {**SHORT, "validation.tasks": names, "validation.tasks_every_steps": 4} | {
        f"validation.tasks_{key}": value for key, value in more.items()
    }


def with_tokenizer(run: RunDir) -> RunDir:
    run.write_text("tokenizer/tokenizer.json", gemma_like(adds_bos=True))
    settings = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": TEMPLATE}
    run.write_text("tokenizer/tokenizer_config.json", json.dumps(settings))
    return run


def points(run: RunDir) -> list[dict[str, Any]]:
    return list(run.rows("tasks"))


def scores(run: RunDir) -> list[tuple[int, list[dict[str, Any]], str]]:
    return [(row["step"], row["scores"], row["weights"]) for row in points(run)]


def evaluated(run: RunDir, step: int, task: Path, *, limit: int | None) -> tuple[str, list[dict[str, Any]]]:
    """As `launch evaluate` asks the checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from launchyard.model.evaluate.harness import HarnessModel
        from launchyard.model.evaluate.tasks import TaskList, TaskSettings, run_tasks
        from launchyard.model.weights.load import digest_in_memory, load
    loaded = load(run.path(run.checkpoint_dir(step)), device="cpu")
    rows = run_tasks(HarnessModel(loaded), TaskList([str(task)]), TaskSettings(limit=limit)).rows
    return digest_in_memory(loaded.transformer), [dict(row) for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: DataSpec, tasks: Path) -> RunDir:
    run = with_tokenizer(make_run(tmp_path_factory.mktemp("run"), data, asked(tasks, "choice", "rolling", limit=6)))
    run_workers(run, 1)
    return run


def test_scores_are_those_of_the_checkpoint(undisturbed: RunDir, tasks: Path) -> None:
    assert [step for step, _, _ in scores(undisturbed)] == [4, 8, 12]
    step, found, weights = scores(undisturbed)[-1]
    digest, choice = evaluated(undisturbed, step, tasks / "choice.yaml", limit=6)
    assert weights == digest
    theirs = [{key: value for key, value in row.items() if key != "higher_is_better"} for row in choice]
    assert [row for row in found if row["task"] == "our_choice"] == theirs
    assert {row["task"] for row in found} == {"our_choice", "our_rolling"}
    assert scores(undisturbed)[0][1] != found, "each point is of its own checkpoint"
    done = [event for event in undisturbed.events(0) if event["event"] == events.TASKS_DONE]
    assert done[-1]["scores"]["our_choice/acc"] == choice[0]["value"]


def test_metrics_prints_them(undisturbed: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["metrics", undisturbed.url, "--tasks"])
    header, *lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header[:2] == ["step", "our_choice/acc"] and [line[0] for line in lines] == ["4", "8", "12"]
    assert lines[-1][1] == f"{values_of(scores(undisturbed)[-1][1])['our_choice/acc']:.4g}"


def test_rows_are_as_their_schema_says(undisturbed: RunDir) -> None:
    assert all(TasksPoint.model_validate(point) for point in points(undisturbed))


def test_training_is_as_without_tasks(tmp_path: Path, undisturbed: RunDir, data: DataSpec) -> None:
    plain = make_run(tmp_path / "plain", data, SHORT)
    run_workers(plain, 1)
    assert history(plain) == history(undisturbed)
    mine, theirs = final_weights(plain), final_weights(undisturbed)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_two_ranks_ask_as_one(tmp_path: Path, undisturbed: RunDir, data: DataSpec, tasks: Path) -> None:
    run = with_tokenizer(make_run(tmp_path / "run", data, asked(tasks, "choice", "rolling", limit=6)))
    run_workers(run, 2)
    assert [step for step, _, _ in scores(run)] == [4, 8, 12]
    for (_, one, _), (_, other, _) in zip(scores(undisturbed), scores(run), strict=True):
        figures = [[row["value"] for row in rows] for rows in (one, other)]
        np.testing.assert_allclose(*figures, rtol=1e-4)  # losses of two ranks are those of one to rounding


def test_killed_before_and_after_the_scores(tmp_path: Path, undisturbed: RunDir, data: DataSpec, tasks: Path) -> None:
    """One row a step, each the same as without a kill; a step that has one is not asked again."""
    run = with_tokenizer(make_run(tmp_path / "run", data, asked(tasks, "choice", "rolling", limit=6)))
    for name in (events.ASKING_TASKS, events.TASKS_DONE):
        (process,) = start_workers(run, 1)
        wait_for(run, name, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    run_workers(run, 1)
    assert run.starts() == {0: 0, 1: 4, 2: 4}
    assert scores(run) == scores(undisturbed)
    assert history(run) == history(undisturbed)
    written = [row["step"] for attempt in run.attempts() for row in run.attempt_rows("tasks", attempt)]
    assert sorted(written) == [4, 8, 12]


def wait_for(run: RunDir, name: str, process: Any) -> None:
    """Until the newest attempt tells of it, or has ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if any(event["event"] == name for event in run.events(run.attempts()[-1])):
            return
        time.sleep(0.01)
    assert process.poll() is not None, f"no {name} within a minute"


def test_a_stop_cuts_it(tmp_path: Path, data: DataSpec, tasks: Path) -> None:
    """All ranks end with the state that was to be asked; the next attempt asks it first."""
    slow = tmp_path / "slow.jsonl"
    slow.write_text("".join(json.dumps({"q": f"the tale {n}", "a": "no"}) + "\n" for n in range(3000)))
    task = json.loads((tasks / "until.yaml").read_text())
    task["dataset_kwargs"]["data_files"] = {"test": str(slow)}
    (tmp_path / "slow.yaml").write_text(json.dumps(task))
    settings = {**SHORT, "validation.tasks": [str(tmp_path / "slow.yaml")], "validation.tasks_every_steps": 4}
    run = with_tokenizer(make_run(tmp_path / "run", data, settings))
    processes = start_workers(run, 2)
    wait_for(run, events.ASKING_TASKS, processes[0])
    os.kill(processes[1].pid, signal.SIGUSR1)  # one rank alone is told
    began = time.monotonic()
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert time.monotonic() - began < 30
    outcome = run.outcome(0)
    assert outcome is not None and (outcome.outcome, outcome.reason, outcome.step) == ("stopped", "preempted", 4)
    run_workers(run, 2, {"validation.tasks": [str(tasks / "choice.yaml")]})
    assert [(row["step"], row["attempt"]) for row in points(run)] == [(4, 1), (8, 1), (12, 1)]


def test_what_is_cut_has_no_scores(undisturbed: RunDir, tasks: Path) -> None:
    from launchyard.training.sections.validation import ValidationConfig
    from launchyard.training.validation.asking import Asking
    from launchyard.training.validation.tasks import TaskPoint

    point = TaskPoint(ValidationConfig(tasks=[str(tasks / "choice.yaml")]), set())
    asking = Asking(point.work, undisturbed.path(undisturbed.checkpoint_dir(12)), torch.device("cpu"))
    asking.cut()
    assert asking.done(60)
    assert (asking.answer, asking.error) == ({}, None)


def test_what_fails_is_told_and_costs_no_run(tmp_path: Path, data: DataSpec, tasks: Path) -> None:
    broken = json.loads((tasks / "choice.yaml").read_text())
    broken["dataset_kwargs"]["data_files"] = {"test": str(tmp_path / "gone.jsonl")}
    (tmp_path / "broken.yaml").write_text(json.dumps(broken))
    run = with_tokenizer(
        make_run(tmp_path / "run", data, {**SHORT, "validation.tasks": [str(tmp_path / "broken.yaml")]})
    )
    run_workers(run, 1)
    outcome = run.outcome(0)
    assert outcome is not None and outcome.outcome == "completed"
    (failed,) = [event for event in run.events(0) if event["event"] == events.TASKS_FAILED]
    assert failed["step"] == 12 and "gone.jsonl" in failed["message"]
    assert points(run) == []


def test_the_generators_stand_where_they_stood() -> None:
    from launchyard.training.validation.asking import own_randomness

    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    with own_randomness():
        random.seed(9), np.random.seed(9), torch.manual_seed(9)
        torch.rand(5)
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected
