"""What a recipe's workers will want of other packages is asked before anything is queued, and again when it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launchyard.errors import RecipeErrors
from launchyard.host.packages import install_command
from launchyard.launcher.recipe.load import load_recipe
from launchyard.launcher.submit import packages
from launchyard.launcher.submit.packages import check_packages, needs_packages

TASK = """
task: ours
dataset_path: json
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: ["yes", "no"]
doc_to_target: 0
"""


def test_a_file_of_tasks_is_found_beside_the_recipe_and_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "recipes"
    here = tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
        (folder / "ours.yaml").write_text(TASK)
    (beside / "mine.yaml").write_text("extends: quickstart\nvalidation: {tasks: [ours.yaml, ours]}\n")
    (beside / "ours").mkdir()  # a folder of that name is no file of tasks
    monkeypatch.chdir(here)
    recipe = load_recipe(str(beside / "mine.yaml"), {}).recipe
    assert recipe.validation.tasks == [str(beside / "ours.yaml"), "ours"]
    recipe = load_recipe(str(beside / "mine.yaml"), {"validation.tasks": ["ours.yaml"]}).recipe
    assert recipe.validation.tasks == [str(here / "ours.yaml")]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            ["gone.yaml"],
            r"validation.tasks=.* on the command line: validation.tasks: no such file or folder: gone.yaml",
        ),
        pytest.param(["TASK", "ourz"], "there is no task ourz", marks=pytest.mark.slow),
    ],
)
def test_tasks_that_are_not_there(tmp_path: Path, tasks: list[str], message: str) -> None:
    (tmp_path / "ours.yaml").write_text(TASK)
    named = [str(tmp_path / "ours.yaml") if name == "TASK" else name for name in tasks]
    with pytest.raises(RecipeErrors, match=message):
        check_packages(load_recipe("quickstart", {"validation.tasks": named}))


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    check_packages(load_recipe("quickstart", {}))
    with pytest.raises(RecipeErrors, match=r"validation.tasks: lm_eval is not installed here") as told:
        check_packages(load_recipe("quickstart", {"validation.tasks": ["piqa"]}))
    assert told.value.hint == install_command("evaluate")


@pytest.mark.parametrize("key", ["tasks_limit", "tasks_every_steps", "tasks_num_fewshot", "tasks_chat_template"])
def test_what_is_of_tasks_alone(key: str) -> None:
    value: Any = True if key == "tasks_chat_template" else 5
    with pytest.raises(RecipeErrors, match=f"{key} is for tasks, and validation.tasks names none"):
        load_recipe("quickstart", {f"validation.{key}": value})


def test_a_resume_asks_only_for_what_it_changes() -> None:
    assert needs_packages({"validation.tasks": ["piqa"]}) and needs_packages({"metrics.trackers": ["wandb"]})
    assert not needs_packages({"train.max_steps": 5, "validation.tasks_limit": 5})
