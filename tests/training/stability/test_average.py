"""The moving average of the weights: the same made by hand, and saved, shown and exported as weights are."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from launchyard.launcher.cli.weights.export import export
from launchyard.model.weights.load import open_weights
from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.training.spec import DataSpec
from tests.support.small_runs import final_weights, history, make_run, run_workers, start_workers, write_data

KEPT = {"train.ema_decay": 0.75, "train.max_steps": 6, "checkpoint.every_steps": 1, "optimizer.lr": 0.02}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: DataSpec) -> RunDir:
    made = make_run(tmp_path_factory.mktemp("runs") / "run", data, KEPT | {"validation.ema": True})
    run_workers(made, 1)
    return made


def weights_at(run: RunDir, step: int, *, averaged: bool = False) -> dict[str, torch.Tensor]:
    _, weights = open_weights(run.path(run.checkpoint_dir(step)), averaged=averaged)
    return {key: weights.get(key) for key in weights.keys()}  # noqa: SIM118


def test_it_is_the_average_of_the_weights_of_all_steps(run: RunDir) -> None:
    found = weights_at(run, 1, averaged=True)
    for step in range(2, 7):
        for key, weight in weights_at(run, step).items():
            found[key] = torch.lerp(found[key], weight, 1 - 0.75)
        averages = weights_at(run, step, averaged=True)
        assert all(torch.equal(average, found[key]) for key, average in averages.items())
    assert any(not torch.equal(average, weights_at(run, 6)[key]) for key, average in found.items())


def test_it_is_shown_in_validation_and_exported(tmp_path: Path, run: RunDir, data: DataSpec) -> None:
    """And whoever looks at it changes nothing."""
    plain = make_run(tmp_path / "plain", data, KEPT)
    run_workers(plain, 1)
    assert history(plain) == history(run)
    mine, theirs = final_weights(run), final_weights(plain)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    (shown,), (of_plain,) = ([row["loss"] for row in one.rows("validation")] for one in (run, plain))
    assert shown != of_plain
    out = str(tmp_path / "exported")
    done = CliRunner().invoke(export, [run.url, "--ema", "--out", out])
    assert done.exit_code == 0, done.output
    again = make_run(tmp_path / "again", data, {"train.max_steps": 1, "validation.at_start": True})
    run_workers(again, 1, {"model.init_from": out})
    assert next(iter(again.rows("validation")))["loss"] == pytest.approx(shown, rel=1e-6)


def test_a_run_without_one_has_none_to_export(tmp_path: Path, data: DataSpec) -> None:
    run = make_run(tmp_path / "run", data, {"train.max_steps": 1})
    run_workers(run, 1)
    with pytest.raises(ValueError, match=r"no averaged weights: its run had no train\.ema_decay"):
        open_weights(run.url, averaged=True)


@pytest.mark.parametrize("nproc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_all_of_it_together_is_resumed_exactly(tmp_path: Path, data: DataSpec, nproc: int) -> None:
    options = {
        "train.ema_decay": 0.9, "train.dropout": 0.1, "train.label_smoothing": 0.1, "train.z_loss": 0.001,
        "train.max_grad_value": 0.05, "parallel.activation_checkpointing": "full",
    }  # fmt: skip
    whole, killed = (make_run(tmp_path / name, data, options) for name in ("whole", "killed"))
    run_workers(whole, nproc)
    processes = start_workers(killed, nproc)
    deadline = time.monotonic() + 60
    while not committed_steps(killed) and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    run_workers(killed, nproc)
    assert history(killed) == history(whole)
    mine, theirs = final_weights(killed), final_weights(whole)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.slow
def test_ranks_train_what_one_process_trains(tmp_path: Path, data: DataSpec) -> None:
    """Masks, averages and all, resharded on the way."""
    options = {
        "train.ema_decay": 0.9, "train.dropout": 0.1, "train.label_smoothing": 0.1, "train.z_loss": 0.001,
        "optimizer.eps": 1e-4, "schedule.name": "constant", "schedule.warmup_steps": 0,
    }  # fmt: skip
    alone, run = (make_run(tmp_path / name, data, options) for name in ("alone", "resized"))
    run_workers(alone, 1)
    run_workers(run, 1, {"train.max_steps": 8})
    run_workers(run, 2, {"train.max_steps": 16})
    run_workers(run, 1, {"train.max_steps": 24})
    assert history(run, ("step", "data_hash")) == history(alone, ("step", "data_hash"))
    mine, theirs = final_weights(run), final_weights(alone)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-4, msg=name)
