"""Tasks are found by name, pattern and file, and what is wrong with one is said by what a person can change."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def found() -> Any:
    """TaskList, whose imports warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from launchyard.model.evaluate.tasks import TaskList

        return TaskList


@pytest.fixture
def ours_alone(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the thousands of lm-eval, which take seconds."""
    from launchyard.model.evaluate import tasks as module

    own = module.TaskManager(include_path=[str(tasks)], include_defaults=False)
    monkeypatch.setattr(module, "TaskManager", lambda **_: own)


def test_tasks_by_name_and_file(found: Any, tasks: Path) -> None:
    assert found(["our_rolling", "our_choice"], [str(tasks)]).names == ["our_rolling", "our_choice"]
    assert found([str(tasks / "until.yaml")]).names == ["our_until"]
    assert found([], [str(tasks / "until.yaml")]).names == ["our_until"]
    assert found(["our_until"], [str(tasks / "until.yaml")]).names == ["our_until"]


def test_tasks_by_pattern(found: Any, ours_alone: None, tasks: Path) -> None:
    assert sorted(found(["our_*"], [str(tasks)]).names) == ["our_choice", "our_rolling", "our_until"]


def test_names_of_lm_eval_are_read_only_where_one_is_wanted(
    found: Any, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launchyard.model.evaluate import tasks as module

    asked = []
    real = module.TaskManager
    monkeypatch.setattr(
        module, "TaskManager", lambda **how: asked.append(how.get("include_defaults", True)) or real(**how)
    )
    found(["our_until"], [str(tasks)])
    found([str(tasks / "until.yaml")])
    assert asked == [False, False]


def test_what_is_not_there_is_named(found: Any, ours_alone: None, tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no task our_choise; did you mean our_choice"):
        found(["our_choise"], [str(tasks)])
    with pytest.raises(FileNotFoundError, match="no such file or folder: nowhere"):
        found(["our_choice"], ["nowhere"])
    (tmp_path / "no.yaml").write_text("a: 1\n")
    with pytest.raises(ValueError, match=r"no\.yaml is no task of lm-eval: it names no task or group"):
        found([str(tmp_path / "no.yaml")])
    with pytest.raises(ValueError, match="no task is named"):
        found([])


def test_a_file_that_names_functions_is_read(found: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\ndataset_path: json\nprocess_docs: !function code.clean\n")
    assert found([str(tmp_path / "mine.yaml")]).names == ["mine"]


# -- a run -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def asked_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    """run_tasks where lm-eval fails with an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from launchyard.model.evaluate import tasks as module

    def run(found: Any, error: Exception) -> Any:
        def fail(**_: object) -> None:
            raise error

        monkeypatch.setattr(module, "evaluate", fail)
        return module.run_tasks(None, found, module.TaskSettings())

    return run


def test_data_of_the_hub_without_the_hub(found: Any, tasks: Path, asked_with: Any) -> None:
    with pytest.raises(FileNotFoundError, match="the data of a task cannot be had: Couldn't reach 'a/b' on the Hub"):
        asked_with(found(["our_until"], [str(tasks)]), ConnectionError("Couldn't reach 'a/b' on the Hub"))


def test_a_task_that_runs_code(found: Any, tasks: Path, asked_with: Any) -> None:
    own = found(["our_until"], [str(tasks)])
    with pytest.raises(ValueError, match="a task runs code that the model writes, which is not done here"):
        asked_with(own, ValueError("Set confirm_run_unsafe_code=True to run this task."))
    with pytest.raises(ValueError, match=r"^another$"):
        asked_with(own, ValueError("another"))


def test_rows_that_are_none(found: Any, tmp_path: Path) -> None:
    from lm_eval.models.dummy import DummyLM

    from launchyard.model.evaluate.tasks import TaskSettings, run_tasks

    (tmp_path / "rows.jsonl").write_text('{"q": 1}\n{"q": \n')
    task = {
        "task": "broken",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "rows.jsonl")},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
    }
    (tmp_path / "broken.yaml").write_text(json.dumps(task))
    with pytest.raises(ValueError, match="the data of a task cannot be read"):
        run_tasks(DummyLM(), found([str(tmp_path / "broken.yaml")]), TaskSettings())
