"""What is measured and judged by, as it is planned: each mistake is named with its key and what there is."""

from __future__ import annotations

import pytest

from launchyard.launcher.plan.plan import PlannedData
from launchyard.launcher.recipe.load import load_recipe
from launchyard.launcher.submit.code import CodeSnapshot
from launchyard.launcher.submit.plan_text import brief, full
from launchyard.training.recipe import Recipe
from launchyard.training.sections.validation import prefers_high
from launchyard.training.spec import TokenSource
from tests.launcher.plan.test_planner import DATA, SMALL, plan_of, problems_of
from tests.support.small_runs import RECIPE

WEB = (TokenSource(folder="/web/train", n_tokens=12_345), TokenSource(folder="/web/validation", n_tokens=655))
WITH_WEB = PlannedData(spec=DATA.model_copy(update={"sets": {"web": WEB}}), vocab_size=2048)
KEYS = {"validation__sets": {"web": "/web"}, "validation__every_steps": 5, "data": WITH_WEB}


def test_the_plan_shows_each_set_with_its_tokens() -> None:
    plan = plan_of(**KEYS)
    recipe = load_recipe(SMALL).recipe
    code = CodeSnapshot(folder="/x", launchyard="1", python="3", platform="p", packages={})
    assert any("validation web · 13k tokens" in line for line in brief(plan, recipe, code))
    text = full(plan, recipe, {}, code, "small.yaml")
    assert [line.split() for line in text if "/web/" in line] == [["validation", "web", one.folder] for one in WEB]
    trained = DATA.model_copy(update={"sets": {"web": DATA.train}})
    notes = plan_of(**{**KEYS, "data": PlannedData(spec=trained, vocab_size=2048)}).notes
    assert any("validation.sets.web is trained on too" in note for note in notes)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("loss", None),
        ("web.loss", None),
        ("main.loss", None),
        ("code.loss", "a set code, and validation.sets has no such one (it has: web)"),
        ("web.reward_margin", "measured of preferences alone"),
    ],
)
def test_a_figure_to_judge_by(metric: str, said: str | None) -> None:
    for key in ("checkpoint.best_metric", "early_stopping.metric"):
        changes = {key.replace(".", "__"): metric, "checkpoint__keep_best": 2, **KEYS}
        if said is None:
            plan_of(**changes)
        else:
            assert said in problems_of(**changes)[key]


def test_what_is_not_held_out_is_no_figure() -> None:
    alone = PlannedData(spec=WITH_WEB.spec.model_copy(update={"validation": ()}), vocab_size=2048)
    plan_of(**{**KEYS, "data": alone})
    problems = problems_of(**{**KEYS, "data": alone}, checkpoint__keep_best=1)
    assert "use web.loss" in problems["checkpoint.best_metric"]
    nothing = PlannedData(spec=DATA.model_copy(update={"validation": ()}), vocab_size=2048)
    changes = {"validation__every_epochs": 0.5, "validation__every_steps": None, "data": nothing}
    assert "no held-out part" in problems_of(**changes)["validation.every_epochs"]
    judged = {"checkpoint__keep_best": 1, "validation__every_steps": None}
    assert "judges by validations" in problems_of(**judged)["validation.every_steps"]
    plan_of(checkpoint__keep_best=1, validation__every_steps=None, validation__every_epochs=0.5)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({"Web": "x"}, "a name has a to z"),
        ({"a.b": "x"}, "a name has a to z"),
        ({"main": "x"}, "the name is taken"),
        ({"perplexity": "x"}, "the name is taken"),
        ({"web": ""}, "sets.web is empty"),
        ({"web": []}, "sets.web is empty"),
    ],
)
def test_names_of_sets(sets: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate({**RECIPE, "validation": {"sets": sets}})


@pytest.mark.parametrize("metric", ["acc", "web.acc", "WEB.loss", "a.b.loss", "perplexity", "web.bits_per_byte"])
def test_no_figure(metric: str) -> None:
    with pytest.raises(ValueError, match=r"no figure to judge by.*NAME\.loss"):
        Recipe.model_validate({**RECIPE, "checkpoint": {"best_metric": metric}})


def test_of_which_more_is_better() -> None:
    assert prefers_high("web.reward_margin", None) and not prefers_high("web.loss", None)


def test_no_password_in_a_source() -> None:
    problems = problems_of(**{**KEYS, "validation__sets": {"web": "s3://me:secret@host/x"}})
    assert "password" in problems["validation.sets.web"]
