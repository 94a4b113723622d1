"""Runs that call the user's own file: the same whatever dies and however many ranks there are; hooks in their order."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launchyard.launcher.python.inside import one_rank, own_random_numbers
from launchyard.launcher.python.steps import Built, take_step
from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.training.compose import choose_objective, first_learner, open_context, open_readers
from launchyard.training.data.dataset_spec import with_sets
from launchyard.training.own.frozen import frozen_name, open_own_code, write_frozen
from launchyard.training.own.load import OwnCodeError
from launchyard.training.own.source import OwnSource
from launchyard.training.recipe import Recipe, stored_recipe
from launchyard.training.spec import DataSpec, read_workload
from tests.support.small_runs import final_weights, history, make_run, run_workers, start_workers, write_data

LOSS = """
import torch
import torch.nn.functional as F
FIGURES = ["accuracy"]

def loss(model, tokens, labels):
    logits = model(tokens)
    kept = labels != -100
    right = (logits.argmax(-1) == labels)[kept].sum()
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total, {"accuracy": right}
"""
OPTIMIZER = """
def optimizer(named_parameters, lr):
    decayed = [p for name, p in named_parameters if p.ndim > 1]
    others = [p for name, p in named_parameters if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "lr": lr / 2}]
    return torch.optim.NAdam(groups, lr=lr)
"""
STARTS = """
import random
def chance_of(seed, number):
    return random.Random(seed * 1_000_003 + number)
"""
BATCHES = """
import random
import starts
def batches(sample_numbers, seq_len, seed, vocab_size):
    rows = []
    for number in sample_numbers:
        chance = starts.chance_of(seed, number)
        start = chance.randrange(vocab_size)
        length = seq_len + 1 if number % 5 else 1 + chance.randrange(1, seq_len)
        rows.append([(start + place * (1 + number % 2)) % vocab_size for place in range(length)])
    return rows
"""
FIRST_AVERAGE = """
import torch
def optimizer(named_parameters, lr):
    return torch.optim.SGD([p for _, p in named_parameters], lr=lr * 10, momentum=0.9, dampening=0.5)
"""
SHORT = {"train.max_steps": 14, "checkpoint.every_steps": 4, "validation.every_steps": 6, "schedule.name": "constant"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


def own_run(folder: Path, data: DataSpec, source: str, overrides: dict[str, Any] | None = None) -> RunDir:
    modules = (("starts.py", STARTS.encode()),) if "import starts" in source else ()
    own = OwnSource("mine.py", source.encode(), modules)
    run = make_run(folder, data, {**SHORT, "code": frozen_name(own), **(overrides or {})})
    write_frozen(run, own)
    return run


def kill_after(run: RunDir, saved: int, nproc: int = 1) -> None:
    """SIGKILL for all once a step later than `saved` is done."""
    processes = start_workers(run, nproc)
    while all(one.poll() is None for one in processes):
        if saved in committed_steps(run) and history(run, ("step",))[-1][0] > saved:
            break
        time.sleep(0.002)
    for one in processes:
        if one.poll() is None:
            os.kill(one.pid, signal.SIGKILL)
        one.wait()
    assert run.outcome(run.attempts()[-1]) is None


def assert_same(one: RunDir, other: RunDir) -> None:
    assert history(one) == history(other)
    mine, theirs = final_weights(one), final_weights(other)
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert torch.equal(mine[key], theirs[key]), key


SOURCES = {"loss+nadam": LOSS + OPTIMIZER, "sgd+batches": FIRST_AVERAGE + BATCHES}
SLOWED = "\nimport time\ndef on_step():\n    time.sleep(0.02)\n"


@pytest.mark.parametrize(
    "source", [pytest.param(SOURCES["loss+nadam"], marks=pytest.mark.slow), SOURCES["sgd+batches"]], ids=SOURCES
)
def test_killed_it_is_the_same_run(tmp_path: Path, data: DataSpec, source: str) -> None:
    whole = own_run(tmp_path / "whole", data, source)
    run_workers(whole, 1)
    killed = own_run(tmp_path / "killed", data, source + SLOWED)
    kill_after(killed, 8)
    run_workers(killed, 1)
    assert_same(killed, whole)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_resized_and_cut_otherwise_it_is_the_same_run(tmp_path: Path, data: DataSpec, source: str) -> None:
    whole, two, small = (own_run(tmp_path / name, data, source) for name in ("whole", "two", "small"))
    run_workers(whole, 1)
    run_workers(two, 2, {"train.max_steps": 9})
    run_workers(two, 1)
    run_workers(small, 1, {"train.micro_batch_size": 4})
    for other in (two, small):
        assert history(other, ("step", "data_hash")) == history(whole, ("step", "data_hash"))
        close = ("loss", "grad_norm")
        np.testing.assert_allclose(history(other, close), history(whole, close), rtol=2e-4)
    if "FIGURES" in source:
        figures = [row["figures"]["accuracy"] for row in whole.rows("steps")]
        assert figures[-1] > figures[0] and max(figures) <= 1
        np.testing.assert_allclose([row["figures"]["accuracy"] for row in two.rows("steps")], figures, atol=0.02)
        assert [row["figures"].keys() for row in whole.rows("validation")] == [{"accuracy"}] * 3


def test_the_own_loss_that_says_the_same_trains_the_same(tmp_path: Path, data: DataSpec) -> None:
    plain = make_run(tmp_path / "plain", data, SHORT)
    own = own_run(tmp_path / "own", data, LOSS)
    for run in (plain, own):
        run_workers(run, 1)
    np.testing.assert_allclose(history(own, ("loss", "grad_norm")), history(plain, ("loss", "grad_norm")), rtol=1e-4)
    assert [row["loss"] for row in own.rows("validation")] == pytest.approx(
        [row["loss"] for row in plain.rows("validation")], rel=1e-4
    )


HOOKS = """
import json
from launchyard import StopTraining, StepDone

def _log(*line):
    with open("{log}", "a") as file:
        print(json.dumps(line), file=file)

def on_step(row: StepDone):
    _log("on_step", row.step, round(row.loss, 3))
    if row.step == {end}:
        raise StopTraining("enough")
    return {{"half": row.loss / 2}}

def on_validation(row):
    _log("on_validation", row.step, row.set, round(row.loss, 3), sorted(row.figures))

def on_end(run):
    _log("on_end", run.outcome, run.step, run.checkpoint)
"""


@pytest.mark.parametrize("nproc", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_hooks_are_called_in_order_and_end_the_run(tmp_path: Path, data: DataSpec, nproc: int) -> None:
    log = tmp_path / "log"
    overrides = {
        "validation.at_start": True,
        "validation.every_steps": 3,
        "checkpoint.every_steps": 100,
        "validation.sets": {"again": data.validation[0].folder},
    }
    data = with_sets(data, {"again": data.model_copy(update={"train": data.validation, "validation": ()})})
    run = own_run(tmp_path / "run", data, HOOKS.format(log=log, end=5), overrides)
    run_workers(run, nproc)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line[:2] for line in lines] == [
        ["on_validation", 0],
        ["on_validation", 0],
        ["on_step", 1],
        ["on_step", 2],
        ["on_step", 3],
        ["on_validation", 3],
        ["on_validation", 3],
        ["on_step", 4],
        ["on_step", 5],
        ["on_end", "completed"],
    ]
    measured = [line[2:] for line in lines if line[0] == "on_validation"]
    rows = list(run.rows("validation"))
    assert [of for of, *_ in measured] == ["main", "again"] * 2
    assert [loss for _, loss, _ in measured] == [round(row["loss"], 3) for row in rows]
    assert all(figures == ["perplexity"] for *_, figures in measured) and all("perplexity" in row for row in rows)
    assert lines[-1][2:] == [5, "checkpoints/step-00000005"]
    outcome = run.outcome(0)
    assert outcome is not None and outcome.outcome == "completed"
    assert outcome.message.startswith("ended early after 5 of 14 steps, for on_step of mine.py: enough")
    rows = list(run.rows("steps"))
    assert [row.get("figures") for row in rows] == [{"half": row["loss"] / 2} for row in rows[:4]] + [None]
    run_workers(run, 1)  # it is complete: no step follows
    assert len(history(run)) == 5


def test_the_error_of_a_hook_ends_the_run_with_its_line(tmp_path: Path, data: DataSpec) -> None:
    run = own_run(tmp_path / "run", data, "def on_step(row):\n    if row.step == 2:\n        return {}['x']\n")
    (process,) = start_workers(run, 1)
    assert process.wait(timeout=60) == 1
    (error,) = run.errors(0)
    assert error["message"] == "on_step of mine.py:3: KeyError: 'x'" and error["fatal"]
    assert "return {}['x']" in error["traceback"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (LOSS.replace('"sum"', '"mean"'), "the loss is no sum over labels"),
        (LOSS.replace("sum()", "sum() / (1 - float((labels == -100).any()))"), "the accuracy is no sum"),
        (LOSS.replace('{"accuracy": right}', '{"precision": right}'), "FIGURES has ['accuracy']"),
        ("import torch\ndef loss(model):\n    return torch.zeros(())", "does not depend on model"),
        ("def loss(model, tokens):\n    return model(tokens)", "allowed: the sum over labels"),
        (LOSS + "def optimizer(named_parameters, lr):\n    return torch.optim.SGD([named_parameters[0][1]])", "lacks"),
        (LOSS + "def optimizer(named_parameters):\n    return 1", "allowed: a torch.optim.Optimizer"),
        (
            BATCHES.replace("starts.chance_of(seed, number)", "random"),
            "is another when it is asked",
        ),
        (BATCHES.replace("return rows", "return rows[1:]"), "one each"),
        (BATCHES.replace("% vocab_size for", "+ vocab_size for"), "allowed: 0 to 96"),
    ],
)
def test_what_a_function_may_not_return(tmp_path: Path, data: DataSpec, source: str, message: str) -> None:
    run = own_run(tmp_path / "run", data, source)
    with pytest.raises(OwnCodeError) as error, own_random_numbers():
        first_step(run)
    assert message in str(error.value) and "mine.py" in str(error.value)


def first_step(run: RunDir) -> None:
    """In this process, by the parts of a worker."""
    recipe = Recipe.model_validate(stored_recipe(run))
    context = open_context(one_rank(0), recipe, read_workload(run))
    code = open_own_code(run, recipe.code)
    learner = first_learner(context, code)
    readers = open_readers(context, lambda name, **facts: None, code=code)
    take_step(Built(context, learner, readers, choose_objective(recipe, code), None, None, None))


def test_a_changed_copy_is_refused(tmp_path: Path, data: DataSpec) -> None:
    run = own_run(tmp_path / "run", data, LOSS)
    run.write_text(frozen_name(OwnSource("mine.py", LOSS.encode())), LOSS + "\n")
    (process,) = start_workers(run, 1)
    assert process.wait(timeout=60) == 1
    assert "was changed after the launch" in run.errors(0)[0]["message"]
