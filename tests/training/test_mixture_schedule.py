"""A mixture whose weights change: the run that changed them at a resume is the run that had them from the beginning."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launchyard.errors import RecipeErrors
from launchyard.launcher.submit.changes import SCHEDULE, is_fixed, refuse_another_past, refuse_another_run
from launchyard.run.checkpoints import committed_steps, record_rollback
from launchyard.run.rundir import RunDir
from launchyard.training.batching import sequences_in, shares_over
from launchyard.training.compose import recipe_hash
from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.dataset_spec import mix
from launchyard.training.data.open_reader import open_reader
from launchyard.training.recipe import Recipe, apply_overrides
from launchyard.training.spec import DataSpec, source_names
from tests.support.small_runs import RECIPE, final_weights, history, make_run, run_workers, start_workers, write_data

MIXTURE = [{"source": "a", "weight": 0.7}, {"source": "b", "weight": 0.3}]
LATER = [{"from_step": 10, "weights": [0.2, 0.8]}, {"from_step": 17, "weights": [0, 1]}]
MIXED = {"data.mixture": MIXTURE}
ALL = ("step", "loss", "grad_norm", "tokens_seen", "data_hash", "source_tokens")


def recipe(**overrides: Any) -> Recipe:
    named = {key.replace("__", "."): value for key, value in overrides.items()}
    return Recipe.model_validate(apply_overrides(RECIPE, {**MIXED, **named}))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    folder = tmp_path_factory.mktemp("data")
    small = write_data(folder / "small", n_tokens=421, n_validation_tokens=90, seed=5)
    return mix([write_data(folder / "large"), small], [0.7, 0.3])


# -- whole runs ------------------------------------------------------------------------------------------------------
def test_weights_given_at_a_resume(tmp_path: Path, data: DataSpec) -> None:
    """Killed, resized from 1 to 2 workers and back, with weights that are known from step 10 on only."""
    foreseen = make_run(tmp_path / "foreseen", data, {**MIXED, SCHEDULE: LATER})
    run_workers(foreseen, 1)
    run = make_run(tmp_path / "run", data, MIXED)
    kill_after(run, step=10)
    record_rollback(run, 10)  # as --from-step does: its steps after that one had the old weights
    run_workers(run, 2, {SCHEDULE: LATER[:1], "train.max_steps": 17})
    run_workers(run, 1, {SCHEDULE: LATER})
    assert set(run.starts().values()) == {0, 10, 17}
    exact = ("step", "tokens_seen", "data_hash", "source_tokens")
    assert history(run, exact) == history(foreseen, exact)
    plain = make_run(tmp_path / "plain", data, MIXED)
    run_workers(plain, 1)
    assert history(plain, ALL)[:10] == history(run, ALL)[:10]
    assert history(plain, exact)[10:] != history(run, exact)[10:]
    for row in run.rows("steps"):
        assert sum(row["source_tokens"].values()) == row["tokens_seen"]
        assert list(row["source_tokens"]) == ["a", "b"]


def test_a_kill_is_not_seen(tmp_path: Path, data: DataSpec) -> None:
    """Bit for bit, across a change of the weights."""
    whole = make_run(tmp_path / "whole", data, {**MIXED, SCHEDULE: LATER})
    run_workers(whole, 1)
    run = make_run(tmp_path / "run", data, {**MIXED, SCHEDULE: LATER})
    kill_after(run, step=5)
    run_workers(run, 1)
    assert history(run, ALL) == history(whole, ALL)
    mine, theirs = final_weights(run), final_weights(whole)
    assert all((mine[key] == theirs[key]).all() for key in theirs)


def test_weights_change_at_the_steps_of_a_ramp(data: DataSpec) -> None:
    """Whose batches are some steps of a reader of smaller ones; what is counted is what is read."""
    ramp = [[0, 4], [4, 8], [14, 12]]
    ramped = recipe(**{SCHEDULE: LATER, "train.batch_size_ramp": ramp})
    reader = open_reader(
        data.train, recipe=ramped, global_batch_size=12, cache=ChunkCache("unused", quota=None), training=True
    )
    last, sizes = 24, []
    read = np.zeros(2, np.int64)
    for step in range(last):
        (sources,), _ = reader.plan(step, 0, 12, 1)
        sizes.append(len(sources))
        read += np.bincount(sources, minlength=2)
        assert step < 17 or sources.all()
        assert sum(reader.tokens_read(step + 1)) == pytest.approx(16 * read.sum(), rel=0.1)
    assert sizes == [sequences_in(ramped.train, step) for step in range(last)]
    assert shares_over(data, ramped, last) == pytest.approx(read / read.sum(), abs=0.03)


def kill_after(run: RunDir, *, step: int) -> None:
    """SIGKILL, a little after it has saved a step."""
    (process,) = start_workers(run, 1)
    deadline = time.monotonic() + 60
    while step not in committed_steps(run) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()


# -- recipes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"from_step": 5, "weights": [1, 1, 1]}], r"mixture_schedule\.0\.weights has 3 numbers; .* has 2 sources"),
        ([{"from_step": 5, "weights": [0, 0]}], r"mixture_schedule\.0\.weights .* one at least must be above zero"),
        ([{"from_step": 5, "weights": [1, 1e-9]}], r"each must be 0, or at least 1/100,000 of their sum"),
        ([LATER[1], LATER[0]], r"mixture_schedule\.1\.from_step is 10, after 17; steps must rise"),
        ([{"from_step": 5, "weights": [1, -1]}], r"greater than or equal to 0"),
    ],
)
def test_schedules_that_cannot_be(stages: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe(data__mixture_schedule=stages)


def test_a_schedule_needs_a_mixture() -> None:
    with pytest.raises(ValueError, match="needs at least two sources"):
        Recipe.model_validate(apply_overrides(RECIPE, {SCHEDULE: LATER}))


def test_what_a_resume_may_change() -> None:
    """The steps to come; the message says how."""
    before, after = recipe(), recipe(data__mixture_schedule=LATER)
    assert not is_fixed(SCHEDULE) and is_fixed("data.seed")
    refuse_another_run(before, after)
    refuse_another_past(before, after, 10)
    refuse_another_past(recipe(data__mixture_schedule=LATER[:1]), after, 17)
    refuse_another_past(after, before, 10)
    for old, new, step in ((before, after, 11), (after, recipe(data__mixture_schedule=LATER[1:]), 12)):
        with pytest.raises(RecipeErrors) as error:
            refuse_another_past(old, new, step)
        assert f"the first {step} steps stay as they are" in str(error.value)
        assert f'"from_step": {step}' in str(error.value.hint)


def test_the_hash_of_recipes_without_a_schedule_stays() -> None:
    """As it was before the key: what a checkpoint records of a run's recipe does not change with our version."""
    assert recipe_hash(recipe()) == HASH
    assert recipe_hash(recipe(data__mixture_schedule=LATER)) != HASH


HASH = "3029713d2dc75782"


def test_shares_of_a_whole_run(data: DataSpec) -> None:
    """By which epochs are foretold."""
    assert shares_over(data, recipe(), 24) == data.shares
    assert shares_over(data, recipe(data__mixture_schedule=LATER), 10) == data.shares
    assert shares_over(data, recipe(data__mixture_schedule=LATER), 20) == pytest.approx((0.42, 0.58))
    at_once = recipe(data__mixture_schedule=[{"from_step": 0, "weights": [1, 3]}])
    assert shares_over(data, at_once, 20) == pytest.approx((0.25, 0.75))


def test_names_of_sources_differ(data: DataSpec) -> None:
    twice = recipe(data__mixture=[{"source": "a", "weight": 1}, {"source": ["a"], "weight": 1}])
    assert source_names(data, twice) == ["a", "a (2)"]
