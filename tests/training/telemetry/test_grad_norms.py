"""Norms of the gradient by part: those of one process however it is cut, and nothing else is changed by measuring."""

from __future__ import annotations

import csv
import math
import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from launchyard.model.config import ModelConfig
from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.training.build import build_model
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.optim.grad_norms import GradNorms
from launchyard.training.recipe import Recipe
from launchyard.training.spec import DataSpec
from launchyard.training.step import forward_backward
from launchyard.training.telemetry.trackers.base import of_step
from launchyard.training.telemetry.trackers.csv import CsvTracker
from tests.support.small_runs import (
    MODEL,
    RECIPE,
    final_weights,
    history,
    make_run,
    run_workers,
    start_workers,
    write_data,
)

RULES = [{"match": "*norm.weight", "lr_scale": 0.5}, {"match": "*bias", "weight_decay": 0.0}]
MEASURED = {"metrics.grad_norms": 2, "train.max_steps": 6, "optimizer.groups": RULES}
CUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "two shards": (2, {}),
    "two copies": (2, {"parallel.shard_level": 0}),
    "two that share matrices": (2, {"parallel.tp": 2}),
    "two that share sequences": (2, {"parallel.cp": 2}),
    "two copies of two shards": (4, {"parallel.dp_replicate": 2}),
    "accumulated": (1, {"train.micro_batch_size": 3}),
    "one with fp32 masters of bf16": (1, {"train.precision": "bf16"}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data: DataSpec, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("alone"), data, MEASURED)
    run_workers(run, 1)
    return run


def measured(run: RunDir) -> dict[int, dict[str, float]]:
    """By step."""
    rows = {row["step"]: row for row in run.rows("steps")}
    assert all(("grad_norms" in row) == ("group_grad_norms" in row) for row in rows.values())
    return {step: row["grad_norms"] | row["group_grad_norms"] for step, row in rows.items() if "grad_norms" in row}


def test_each_of_them_makes_up_the_global_norm(alone: RunDir) -> None:
    rows = [row for row in alone.rows("steps") if "grad_norms" in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        assert list(row["grad_norms"]) == ["embed", "blocks.0", "blocks.1", "norm", "lm_head"]
        assert list(row["group_grad_norms"]) == ["*norm.weight", "*bias", "rest"]
        for norms in (row["grad_norms"], row["group_grad_norms"]):
            assert all(norm > 0 for norm in norms.values())
            assert math.hypot(*norms.values()) == pytest.approx(row["grad_norm"], rel=1e-6)


@pytest.mark.parametrize("how", CUTS)
def test_they_are_those_of_one_process(how: str, alone: RunDir, data: DataSpec, tmp_path: Path) -> None:
    workers, overrides = CUTS[how]
    run = make_run(tmp_path / "run", data, {**MEASURED, **overrides})
    run_workers(run, workers)
    rough = 0.1 if "train.precision" in overrides else 1e-4
    expected = measured(alone)
    found = measured(run)
    assert found.keys() == expected.keys()
    for step, norms in found.items():
        assert norms == pytest.approx(expected[step], rel=rough)


@pytest.mark.parametrize("workers", [1, 2])
def test_measuring_changes_no_bit(workers: int, data: DataSpec, tmp_path: Path) -> None:
    runs = {}
    for every in (None, 1):
        run = make_run(tmp_path / str(every), data, {"train.max_steps": 6, "metrics.grad_norms": every})
        run_workers(run, workers)
        runs[every] = run
    rows = list(runs[1].rows("steps"))
    assert all("grad_norms" in row and "group_grad_norms" not in row for row in rows)
    assert history(runs[1]) == history(runs[None])
    weights = final_weights(runs[None])
    assert all(torch.equal(one, weights[key]) for key, one in final_weights(runs[1]).items())
    assert not any("grad_norms" in row for row in runs[None].rows("steps"))


def test_killed_and_resumed_they_are_those_of_the_run_that_was_not(data: DataSpec, tmp_path: Path) -> None:
    overrides = MEASURED | {"train.max_steps": 12, "checkpoint.every_steps": 3}
    runs = [make_run(tmp_path / name, data, overrides) for name in ("undisturbed", "killed")]
    run_workers(runs[0], 1)
    (worker,) = start_workers(runs[1], 1)
    while not committed_steps(runs[1]) and worker.poll() is None:
        time.sleep(0.005)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert runs[1].outcome(0) is None
    run_workers(runs[1], 1)
    assert measured(runs[1]) == measured(runs[0]) and [*measured(runs[0])] == [2, 4, 6, 8, 10, 12]
    assert next(event["step"] for event in runs[1].events(1) if event["event"] == "started") > 0


def test_a_part_is_the_norm_of_its_gradients() -> None:
    """Against torch's own, of each parameter."""
    recipe = Recipe.model_validate(RECIPE)
    config = ModelConfig.model_validate({**MODEL, "tie_embeddings": True})
    model = build_model(config, recipe, world_size=1, device=torch.device("cpu"))
    tokens = torch.arange(16)[None] * 5 % 97
    norms = GradNorms(model, (), every=3, copies=1)
    assert norms.observer(4) is None and norms.take(4) == ({}, {})
    forward_backward(model, [MicroBatch(tokens, (tokens + 1) % 97)], n_parts=16)
    observe = norms.observer(3)
    assert observe is not None
    observe(nullcontext)
    found, by_rule = norms.take(3)
    assert by_rule == {} and norms.take(3) == ({}, {})
    assert "lm_head" not in found  # it is the table
    for part, norm in found.items():
        grads = [p.grad for name, p in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
        assert norm == pytest.approx(float(torch.nn.utils.get_total_norm([g for g in grads if g is not None])))


def test_trackers_get_names_that_all_of_them_take(alone: RunDir) -> None:
    row = next(row for row in alone.rows("steps") if "grad_norms" in row)
    values = of_step(row)
    assert values["train/grad_norms/blocks.1"] == row["grad_norms"]["blocks.1"]
    assert values["train/group_grad_norms/0"] == row["group_grad_norms"]["*norm.weight"]
    assert not any("*" in key for key in values)


def test_a_csv_file_gets_the_columns_of_later_rows(tmp_path: Path) -> None:
    tracker = CsvTracker(RunDir(str(tmp_path)))
    tracker.log(1, {"train/loss": 4.0, "train/lr": 0.1})
    tracker.log(2, {"train/loss": 3.0, "train/lr": 0.2, "train/grad_norms/embed": 0.5})
    tracker.log(3, {"train/loss": 2.0, "train/lr": 0.3})
    tracker.close()
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [row["loss"] for row in rows] == ["4.0", "3.0", "2.0"]
    assert [row["grad_norms/embed"] for row in rows] == ["", "0.5", ""]
