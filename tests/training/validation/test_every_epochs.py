"""Validations by the share of an epoch: at the steps at which a run of so many epochs would end."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.training.batching import count_steps, is_share_read, samples_of
from launchyard.training.recipe import Recipe, apply_overrides
from launchyard.training.sections.ramp import Ramp
from launchyard.training.spec import DataSpec, RowFacts, TokenSource
from tests.support.small_runs import RECIPE, make_run, run_workers, write_data

RAMPS = st.sampled_from([(), ((0, 2), (7, 6)), ((0, 3), (2, 4), (11, 12))])


def recipe_of(ramp: Ramp, batch: int, **keys: object) -> Recipe:
    sizes = {"train.global_batch_size": ramp[-1][1] if ramp else batch, "train.batch_size_ramp": ramp}
    return Recipe.model_validate(apply_overrides(RECIPE, {**sizes, **keys}))


def spec_of(*sources: TokenSource) -> DataSpec:
    return DataSpec(train=sources, validation=(), tokenizer=None, digest="d")


def due(recipe: Recipe, data: DataSpec, share: float, steps: int) -> list[int]:
    return [step for step in range(1, steps + 1) if is_share_read(recipe, data, step, share)]


def ends(recipe: Recipe, data: DataSpec, epochs: list[float]) -> list[int]:
    """The last steps of runs of so many epochs."""
    keys = [{"train.max_epochs": one} for one in epochs]
    raw = recipe.model_dump(mode="json")
    return sorted({count_steps(Recipe.model_validate(apply_overrides(raw, key)), data) for key in keys})


@given(st.integers(50, 3000), st.integers(1, 12), RAMPS, st.sampled_from([0.25, 0.5, 1.0, 1.5]))
def test_of_a_stream_they_are_where_so_many_epochs_end(n_tokens: int, batch: int, ramp: Ramp, share: float) -> None:
    recipe = recipe_of(ramp, batch)
    data = spec_of(TokenSource(folder="a", n_tokens=n_tokens))
    expected = ends(recipe, data, [share * number for number in range(1, 5)])
    assert due(recipe, data, share, expected[-1]) == expected


@given(
    st.lists(st.integers(1, 40), min_size=4, max_size=4), st.integers(1, 7), RAMPS, st.sampled_from([0.25, 0.5, 1.0])
)
def test_of_packs_whose_number_differs_they_are_too(packs: list[int], batch: int, ramp: Ramp, share: float) -> None:
    recipe = recipe_of(ramp, batch)
    rows = RowFacts(rows=90, labels=90, longest=9, packs=tuple(packs))
    data = spec_of(TokenSource(folder="a", n_tokens=900, instruct=rows))
    expected = ends(recipe, data, [share * number for number in range(1, int(4 / share) + 1)])
    assert due(recipe, data, share, expected[-1]) == expected


@given(st.sampled_from([1, 3, 7]), st.integers(1, 30))
def test_shares_without_a_binary_form_are_exact(tenths: int, batch: int) -> None:
    data = spec_of(TokenSource(folder="a", n_tokens=16 * 1000 + 1))  # 1000 sequences
    steps = 3000 // batch
    expected = {-(-number * tenths * 100 // batch) for number in range(1, 40)}
    assert due(recipe_of((), batch), data, tenths / 10, steps) == sorted(one for one in expected if one <= steps)


def test_an_epoch_of_a_mixture_is_all_that_it_holds() -> None:
    data = spec_of(TokenSource(folder="a", n_tokens=161), TokenSource(folder="b", n_tokens=481, weight=3.0))
    assert [samples_of(one, 16) for one in data.train] == [10, 30]
    assert due(recipe_of((), 4), data, 0.5, 20) == [5, 10, 15, 20]


def test_epochs_after_those_that_are_counted_are_as_long_as_the_last() -> None:
    rows = RowFacts(rows=9, labels=9, longest=9, packs=(8, 6))
    data = spec_of(TokenSource(folder="a", n_tokens=90, instruct=rows))
    assert due(recipe_of((), 2), data, 1.0, 16) == [4, 7, 10, 13, 16]


def test_a_run_measures_at_those_steps(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")  # 157 sequences, in steps of 12
    keys = {"validation.every_epochs": 0.25, "train.max_steps": None, "train.max_epochs": 1.0}
    run = make_run(tmp_path / "run", data, keys)
    run_workers(run, 1)
    assert [row["step"] for row in run.rows("validation")] == [4, 7, 10, 14]


def test_steps_or_epochs() -> None:
    with pytest.raises(ValueError, match="every_steps or every_epochs, not both"):
        Recipe.model_validate({**RECIPE, "validation": {"every_steps": 4, "every_epochs": 0.5}})
    by_steps = {**RECIPE, "validation": {"every_steps": 4}}
    changed = Recipe.model_validate(apply_overrides(by_steps, {"validation.every_epochs": 0.5}))
    assert changed.validation.every_steps is None, "the one replaces the other, as lengths of a run do"
