"""Section `profile` of a recipe: what it takes, and what a plan refuses."""

from __future__ import annotations

from typing import Any

import pytest

from launchyard.launcher.plan.profile import profile_problems
from launchyard.training.profile.requests import Window, not_before, windows_of
from launchyard.training.recipe import Recipe, apply_overrides
from launchyard.training.sections.metrics import MOST_STEPS, ProfileConfig
from launchyard.training.spec import DataSpec, TokenSource
from tests.support.small_runs import RECIPE

DATA = DataSpec(train=(TokenSource(folder="/d", n_tokens=10_000),), validation=(), tokenizer=None, digest="d")


def problems(profile: dict[str, Any], world_size: int = 2) -> dict[str, str]:
    recipe = Recipe.model_validate(apply_overrides(RECIPE, {"profile": profile}))
    return dict(profile_problems(recipe, DATA, world_size))


@pytest.mark.parametrize(
    ("steps", "windows"), [([10, 12], [(10, 12)]), ([[1, 1], [4, 9]], [(1, 1), (4, 9)]), ([[3, 3]], [(3, 3)])]
)
def test_one_window_or_several(steps: list[Any], windows: list[tuple[int, int]]) -> None:
    config = ProfileConfig.model_validate({"steps": steps})
    assert config.windows == windows
    assert ProfileConfig.model_validate(config.model_dump(mode="json")) == config, "as a run keeps it"
    assert [(window.first, window.last) for window in windows_of(config, 0)] == windows
    assert windows_of(config, 1) == windows_of(None, 0) == []


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"steps": 10}, "10 is no window"),
        ({"steps": []}, "no window"),
        ({"steps": [1, 2, 3]}, "no window"),
        ({"steps": [[1, 2], 3]}, "3 is no window"),
        ({"steps": [0, 2]}, "greater than or equal to 1"),
        ({"steps": [9, 4]}, "ends at step 4, before it begins at 9"),
        ({"steps": [[1, 4], [4, 9]]}, "begins at step 4, within or before one that ends at 4"),
        ({"steps": [1, MOST_STEPS + 1]}, f"{MOST_STEPS} at most"),
        ({"steps": [1, 2], "ranks": []}, "name one at least"),
        ({"steps": [1, 2], "ranks": [0, 0]}, "each once"),
        ({"steps": [1, 2], "ranks": [-1]}, "greater than or equal to 0"),
        ({"ranks": [0]}, "Field required"),
    ],
)
def test_what_makes_no_sense_is_refused(profile: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ProfileConfig.model_validate(profile)


def test_steps_and_ranks_must_be_there() -> None:
    """The run of these tests has 24 steps."""
    assert problems({"steps": [23, 24], "ranks": [0, 1]}) == problems({"steps": [1, 1], "ranks": "all"}) == {}
    found = problems({"steps": [[1, 2], [20, 25]], "ranks": [1, 2, 5]})
    assert "step 25 is never made" in found["profile.steps"] and "from 1 to 24" in found["profile.steps"]
    assert "2, 5: there are 2 workers, with ranks from 0 to 1" in found["profile.ranks"]
    assert "there is 1 worker," in problems({"steps": [1, 1], "ranks": [1]}, world_size=1)["profile.ranks"]


@pytest.mark.parametrize(("step", "first"), [(1, 10), (10, 10), (11, 11), (90, 90)])
def test_a_window_that_has_passed_keeps_its_length(step: int, first: int) -> None:
    assert not_before(Window(10, 12, memory=True), step) == Window(first, first + 2, memory=True)
