"""What validations decide: the surviving set of the best, and the end before the last step."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launchyard.launcher.runs.pinned import pinned_checkpoint
from launchyard.run.checkpoints import best_checkpoint, committed_steps
from launchyard.run.rundir import RunDir
from launchyard.training.checkpoint.state import TrainState
from launchyard.training.sections.checkpoint import CheckpointConfig
from launchyard.training.sections.early_stopping import EarlyStoppingConfig
from launchyard.training.spec import DataSpec
from launchyard.training.verdict import Best, Patience, ranked
from tests.support.small_runs import final_weights, history, make_run, run_workers, start_workers, write_data

FIGURES = st.lists(st.floats(0, 4) | st.just(math.nan), max_size=20)


def after(losses: list[float], **config: Any) -> tuple[int, str] | None:
    """At which validation a run ends, the first being 1, and why; None if it does not."""
    chosen = EarlyStoppingConfig(**config)
    patience = Patience()
    for number, loss in enumerate(losses, start=1):
        patience = patience.after({chosen.metric: loss}, chosen)
        patience = Patience(**TrainState.from_json(TrainState(patience=patience).to_json()).patience.__dict__)
        if (why := patience.verdict(chosen)) is not None:
            return number, why
    return None


@given(FIGURES, st.integers(1, 4))
def test_the_best_are_the_smallest_so_far(losses: list[float], keep: int) -> None:
    best: Best = []
    for step, loss in enumerate(losses, start=1):
        best = ranked(best, step, {"loss": loss}, CheckpointConfig(keep_best=keep))
    finite = [(loss, step) for step, loss in enumerate(losses, start=1) if math.isfinite(loss)]
    assert best == [(step, loss) for loss, step in sorted(finite)[:keep]]


def test_of_some_figures_more_is_better() -> None:
    config = CheckpointConfig(keep_best=2, best_metric="reward_accuracy")
    best: Best = []
    for step, figure in enumerate([0.5, 0.9, 0.9, 0.7], start=1):
        best = ranked(best, step, {"loss": 1.0, "reward_accuracy": figure}, config)
    assert best == [(2, 0.9), (3, 0.9)]
    assert ranked(best, 5, {"reward_accuracy": 0.1}, config.model_copy(update={"best_mode": "min"}))[0] == (5, 0.1)


@pytest.mark.parametrize(
    ("losses", "config", "end"),
    [
        ([3.0, 2.0, 1.0, 0.5], {"patience": 1}, None),
        ([3.0, 2.0, 2.0, 2.1, 1.0], {"patience": 2}, 4),
        ([3.0, 2.0, 2.1, 1.9, 2.0, 1.8], {"patience": 2}, None),
        ([3.0, 2.95, 2.91, 1.0], {"patience": 2, "min_delta": 0.1}, 3),  # slow progress is none
        ([3.0, math.nan], {}, 2),
        ([3.0, math.inf, 2.0], {"finite": False, "patience": 2}, None),
        ([math.nan, math.nan, math.nan], {"finite": False}, 3),
        ([3.0, 2.0, 1.0], {"threshold": 2.0}, 2),
        ([3.0, 9.0, 1.0], {"divergence": 8.0}, 2),
        ([0.5, 0.6, 0.6], {"metric": "reward_accuracy", "patience": 1}, 3),
        ([0.5, 0.6, 0.9], {"metric": "reward_accuracy", "threshold": 0.9}, 3),
    ],
)
def test_when_a_run_ends(losses: list[float], config: dict[str, Any], end: int | None) -> None:
    found = after(losses, **config)
    assert (None if found is None else found[0]) == end


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


# A learning rate at which the loss leaps about; the greatest counts as the best here, and comes early.
BEST = {
    "train.max_steps": 40,
    "train.max_grad_norm": None,
    "optimizer.lr": 0.6,
    "schedule.name": "constant",
    "checkpoint.every_steps": 16,
    "checkpoint.keep": 1,
    "checkpoint.keep_best": 2,
    "checkpoint.best_mode": "max",
    "validation.every_steps": 3,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: DataSpec) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("runs") / "undisturbed", data, BEST)
    run_workers(run, 1)
    return run


def losses_of(run: RunDir) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in run.rows("validation")}


def expected_steps(losses: dict[int, float]) -> list[int]:
    best = sorted((-loss, step) for step, loss in losses.items())[:2]
    return sorted({*(step for _, step in best), 40})


def test_the_surviving_checkpoints(undisturbed: RunDir) -> None:
    losses = losses_of(undisturbed)
    assert max(losses, key=losses.__getitem__) < 30, "the test wants a run whose best is not its last"
    surviving = committed_steps(undisturbed)
    assert set(expected_steps(losses)) <= set(surviving)
    assert len(surviving) <= 4  # with the one before the newest, to fall back on
    best = best_checkpoint(undisturbed, metric="loss", high=True)
    assert best == max(losses, key=losses.__getitem__)
    assert pinned_checkpoint(f"{undisturbed.url}@best") == undisturbed.path(undisturbed.checkpoint_dir(best))
    assert pinned_checkpoint(f"{undisturbed.url}@last") == undisturbed.path(undisturbed.checkpoint_dir(40))
    assert pinned_checkpoint(f"{undisturbed.url}@40") == undisturbed.path(undisturbed.checkpoint_dir(40))


def test_killed_and_resized_it_keeps_the_same(tmp_path: Path, undisturbed: RunDir, data: DataSpec) -> None:
    run = make_run(tmp_path / "killed", data, BEST)
    for steps in (13, 27):
        (process,) = start_workers(run, 1)
        deadline = time.monotonic() + 60
        while len(history(run)) < steps and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    run_workers(run, 1)
    assert losses_of(run) == losses_of(undisturbed)
    assert set(expected_steps(losses_of(run))) <= set(committed_steps(run))
    mine, theirs = final_weights(run), final_weights(undisturbed)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_run_that_ends_early(tmp_path: Path, data: DataSpec, nproc: int) -> None:
    """Completed, with its last checkpoint there; a resume ends at once, and goes on with more patience."""
    overrides = {**BEST, "checkpoint.keep_best": None, "early_stopping": {"patience": 2, "mode": "max"}}
    run = make_run(tmp_path / "run", data, overrides)
    run_workers(run, nproc)
    losses = list(losses_of(run).items())
    ended = after([loss for _, loss in losses], patience=2, mode="max")
    assert ended is not None and ended[0] == len(losses) and losses[-1][0] < 40
    outcome = run.outcome(0)
    assert outcome is not None and outcome.outcome == "completed"
    assert (outcome.step, committed_steps(run)[-1]) == (losses[-1][0], losses[-1][0])
    assert "ended early after" in outcome.message and "has not improved on" in outcome.message
    run_workers(run, nproc)
    assert [step for step, _ in losses_of(run).items()] == [step for step, _ in losses]
    run_workers(run, nproc, {"early_stopping.patience": 9})
    assert max(losses_of(run)) > losses[-1][0]
