"""The optimizer of a plan: its bytes are counted, and what cannot be meant is refused before anything is queued."""

from __future__ import annotations

from typing import Any

import pytest

from launchyard.errors import RecipeErrors
from launchyard.launcher.plan.plan import PlanError
from launchyard.launcher.recipe.load import load_recipe
from launchyard.training.compose import recipe_hash
from launchyard.training.recipe import Recipe, apply_overrides
from launchyard.training.sections.optimizer import OPTIMIZER_KEYS
from tests.launcher.plan.test_planner import SMALL, plan_of, problems_of
from tests.support.small_runs import RECIPE

FREE = {"optimizer__name": "adamw-schedule-free", "schedule__name": "constant"}


def refused(**keys: Any) -> str:
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(SMALL, {key.replace("__", "."): value for key, value in keys.items()})
    return str(caught.value)


@pytest.mark.parametrize("name", OPTIMIZER_KEYS)
def test_keys_of_other_optimizers_are_refused_by_name(name: str) -> None:
    values = {key: value for keys in OPTIMIZER_KEYS.values() for key, value in keys.items()}
    for key, value in values.items():
        if key not in OPTIMIZER_KEYS[name]:
            text = refused(**{"optimizer__name": name, f"optimizer__{key}": list(value) if key == "betas" else value})
            assert f"optimizer: {key}: a key of " in text and f"{name} has " in text


def test_keys_of_other_schedules_are_refused_by_name() -> None:
    text = refused(schedule__name="linear", schedule__power=2.0)
    assert "schedule: power: a key of polynomial; linear has no keys of its own" in text


def test_a_name_that_is_nearly_one_is_answered_with_it() -> None:
    assert 'got "adam8bit"; did you mean adamw-8bit?' in refused(optimizer__name="adam8bit")
    assert 'got "inverse_sqr"; did you mean inverse-sqrt?' in refused(schedule__name="inverse_sqr")


def test_each_optimizer_has_its_own_defaults_and_gives_way_to_what_is_written() -> None:
    def section(**keys: Any) -> Any:
        return load_recipe(SMALL, {f"optimizer.{key}": value for key, value in keys.items()}).recipe.optimizer

    factored = load_recipe(SMALL, {"optimizer": {"name": "adafactor"}}).recipe.optimizer
    assert (factored.lr, factored.beta2_decay, factored.weight_decay, factored.betas) == (1e-2, -0.8, 0.0, None)
    assert section(name="adafactor", lr=0.5).lr == 0.5
    assert section(name="lion").betas == (0.9, 0.99)
    assert section(name="lion", betas=[0.8, 0.9]).betas == (0.8, 0.9)


def test_what_makes_no_sense_together_is_refused() -> None:
    assert "nesterov: looks ahead by the momentum, which is 0" in refused(
        optimizer__name="sgd", optimizer__nesterov=True
    )
    assert "use constant" in problems_of(optimizer__name="adamw-schedule-free")["schedule.name"]
    assert plan_of(**FREE)


def test_a_rule_that_decides_about_nothing_is_refused() -> None:
    def problem(*patterns: str, **changes: Any) -> str:
        rules = [{"match": pattern} for pattern in patterns]
        return problems_of(optimizer__groups=rules, **changes)["optimizer.groups"]

    assert "1.match: no parameter that trains matches *.nrm.*; their names are embed.weight" in problem(
        "*.bias", "*.nrm.*"
    )
    assert "1.match: blocks.0.* comes behind blocks.*, which has all" in problem("blocks.*", "blocks.0.*")
    assert "no parameter that trains matches embed.weight" in problem("embed.weight", adapter__frozen=["embed.*"])
    assert plan_of(optimizer__groups=[{"match": "*norm*", "lr_scale": 0.1}, {"match": "*", "weight_decay": 0.0}])


def test_the_state_of_each_optimizer_is_counted() -> None:
    """What a checkpoint holds, and a worker: AdamW two numbers a parameter, others as many as their papers say."""

    def sizes(name: str, **changes: Any) -> tuple[float, float]:
        """Of the state, by parameters: (on a worker, in a checkpoint)."""
        plan = plan_of(**{"optimizer__name": name, "schedule__name": "constant", **changes})
        weights = 4 * plan.n_params
        return plan.memory["optimizer"] / weights, plan.checkpoint_bytes / weights - 1

    assert sizes("adamw") == (2, 2)
    assert sizes("sgd") == (0, 0)
    assert sizes("sgd", optimizer__momentum=0.9) == (1, 1)
    assert sizes("lion") == (1, 1)
    assert sizes("adamw-schedule-free") == (pytest.approx(3, rel=1e-3), pytest.approx(2, rel=1e-3))
    assert max(sizes("adafactor")) < 0.05
    assert 1 < sizes("muon")[0] == sizes("muon")[1] < 2
    assert 0.5 < sizes("adamw-8bit")[0] == sizes("adamw-8bit")[1] < 0.6
    one, two = (plan_of(optimizer__name="muon", resources__nproc_per_node=n).memory["optimizer"] for n in (1, 2))
    assert two == pytest.approx(one / 2, abs=1)
    memory = [plan_of(optimizer__name="adafactor", optimizer__low_memory=low).memory for low in (False, True)]
    assert memory[1]["total"] <= memory[0]["total"]


def test_the_state_is_counted_in_the_numbers_of_the_precision() -> None:
    def bytes_each(name: str, **changes: Any) -> float:
        plan = plan_of(**{"optimizer__name": name, "schedule__name": "constant", **changes})
        return plan.checkpoint_bytes / plan.n_params

    assert bytes_each("lion", train__precision="fp64") == 8 + 8
    assert bytes_each("lion", train__precision="bf16-true", train__bf16_rounding="compensated") == 2 + 2 + 4
    assert bytes_each("sgd", train__precision="bf16-true", train__ema_decay=0.9) == 2 + 4
    plain, kept = (
        plan_of(optimizer__name="lion", train__precision="bf16-true", train__bf16_rounding=rounding)
        for rounding in ("nearest", "compensated")
    )
    assert kept.memory["optimizer"] - plain.memory["optimizer"] == 2 * plain.n_params


@pytest.mark.parametrize("name", OPTIMIZER_KEYS)
def test_an_optimizer_that_does_not_go_with_something_is_refused_by_name(name: str) -> None:
    def problem(key: str = "optimizer.name", **changes: Any) -> str:
        own = {"optimizer__name": name, "schedule__name": "constant"}
        try:
            plan_of(**own, **changes)
        except PlanError:
            return problems_of(**own, **changes).get(key, "")
        return ""

    apart = name in ("muon", "adamw-schedule-free")
    assert (f"{name} does not go with train.precision=bf16-true" in problem(train__precision="bf16-true")) == apart
    assert (f"{name} does not go with train.ema_decay" in problem(train__ema_decay=0.9)) == apart
    assert ("less than fp32" in problem(train__precision="fp64")) == (name == "adamw-8bit")
    assert ("on their GPUs" in problem(parallel__cpu_offload=True)) == (name in ("muon", "adafactor"))
    whole = name in ("muon", "adafactor", "adamw-8bit")
    shared = problem("parallel.tp", parallel__tp=2, resources__nproc_per_node=2)
    assert (f"optimizer.name={name} is of whole matrices" in shared) == whole


def test_short_sequences_are_not_shared_by_workers() -> None:
    ramp = {"data__seq_len": 64, "data__seq_len_ramp": [[0, 32], [5, 64]]}
    assert plan_of(**ramp)
    found = problems_of(**ramp, parallel__cp=2, resources__nproc_per_node=2)
    assert "use parallel.cp=1" in found["data.seq_len_ramp"]


def test_old_recipes_keep_their_hash() -> None:
    """That of versions whose recipes had one optimizer, three schedules and no ramp."""
    recipe = Recipe.model_validate(RECIPE)
    assert recipe_hash(recipe) == "bee1902cadcb7f81"
    changes = {"optimizer.name": "lion", "schedule.name": "wsd", "schedule.by": "tokens"}
    changes |= {"train.batch_size_ramp": [[0, 4], [9, 12]], "data.seq_len_ramp": [[0, 4], [9, 16]]}
    changed = [recipe_hash(Recipe.model_validate(apply_overrides(RECIPE, {key: changes[key]}))) for key in changes]
    assert len({recipe_hash(recipe), *changed}) == 6
