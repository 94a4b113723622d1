"""Tasks of lm-evaluation-harness: which there are, and a model's results in them as rows. Prints nothing."""

from __future__ import annotations

import difflib
import logging
import math
import numbers
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
import yaml
from datasets.exceptions import DatasetsError
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from jinja2 import TemplateError
from lm_eval import evaluate
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from launchyard.model.evaluate.harness import HarnessModel
from launchyard.storage.files import read_text

_YAML = (".yaml", ".yml")


# As lm-eval has them where nothing is said: of Python, of NumPy and torch, and of the choice of examples.
_SEEDS = (0, 1234, 1234, 1234)


@dataclass(frozen=True)
class TaskSettings:
    """How tasks are asked; None: as each task, and lm-eval, has it. limit: only so many samples of each task."""

    num_fewshot: int | None = None
    limit: int | None = None
    chat: bool = False  # by the model's chat template
    system: str | None = None
    seed: int | None = None


class TaskRow(TypedDict):
    """One figure of one task or group. filter: how answers were read; "none" where they were taken as they are."""

    task: str
    metric: str
    filter: str
    value: float | None
    stderr: float | None
    higher_is_better: bool | None
    n_shot: int | None
    n_samples: int | None
    version: str | None


@dataclass(frozen=True)
class TaskResults:
    """samples: what was asked and answered, with the name of the task in each."""

    rows: list[TaskRow]
    samples: list[dict[str, object]] = field(repr=False)


class TaskList:
    """Tasks by name, by a pattern of names, or by a YAML file. include: YAML files, and folders with more of them.

    ValueError names what is not there, with names that are alike. Reads no data yet.
    """

    def __init__(self, names: Sequence[str], include: Sequence[str] = ()) -> None:
        files = [Path(name) for name in (*names, *include) if name.endswith(_YAML)]
        folders = [Path(name) for name in include if not name.endswith(_YAML)]
        for path in (*files, *folders):
            if not path.exists():
                raise FileNotFoundError(f"no such file or folder: {path}")
        named = {str(file): _name_in(file) for file in files}
        wanted = [named.get(str(Path(name)), name) for name in names] or list(named.values())
        if not wanted:
            raise ValueError("no task is named")
        places = [str(folder) for folder in (*folders, *dict.fromkeys(file.parent for file in files))]
        with _quiet():
            self.manager = _manager(places, wanted)
        self.names = [found for name in wanted for found in self._matching(name)]

    def _matching(self, name: str) -> list[str]:
        known = self.manager.all_tasks
        if name in known:
            return [name]
        matching: list[str] = self.manager.match_tasks([name])
        if matching:
            return matching
        alike = difflib.get_close_matches(name, known, n=3)
        advice = f"did you mean {' or '.join(alike)}?" if alike else "`lm_eval ls tasks` lists those of lm-eval"
        raise ValueError(f"there is no task {name}; {advice}")


def _manager(places: Sequence[str], wanted: Sequence[str]) -> TaskManager:
    """Those in `places` alone if they are all that is wanted: reading the thousands of lm-eval takes seconds."""
    if places:
        own = TaskManager(include_path=list(places), include_defaults=False)
        if set(wanted) <= set(own.all_subtasks):
            return own
    return TaskManager(include_path=list(places) or None)


class _Tolerant(yaml.SafeLoader):
    """Reads the plain keys of a file in which others name functions."""


_Tolerant.add_multi_constructor("!", lambda loader, suffix, node: None)


def _name_in(file: Path) -> str:
    """Of a task or a group."""
    content = yaml.load(read_text(str(file)), _Tolerant)  # noqa: S506, a safe loader
    name = content.get("group") or content.get("task") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"{file} is no task of lm-eval: it names no task or group")
    return name


def run_tasks(model: HarnessModel, tasks: TaskList, settings: TaskSettings) -> TaskResults:
    """ValueError for a task that cannot be asked; FileNotFoundError if the data of one cannot be had."""
    if settings.chat and settings.system is not None:
        model.check_system(settings.system)
    with _quiet(), _task_errors():
        found = evaluate(
            lm=model,
            task_dict=_set_up(tasks, settings),
            limit=settings.limit,
            apply_chat_template=settings.chat,
            fewshot_as_multiturn=settings.chat,
            system_instruction=settings.system,
            log_samples=True,
        )
    return TaskResults(list(_rows(found)), list(_samples(found["samples"])))


def _set_up(tasks: TaskList, settings: TaskSettings) -> Mapping[str, object]:
    """The tasks as lm-eval's own command has them before it asks.

    That also asks git about the working directory and pip about the machine: noise outside a repository, and seconds.
    """
    seeds = _SEEDS if settings.seed is None else (settings.seed,) * len(_SEEDS)
    random.seed(seeds[0])
    np.random.seed(seeds[1])  # tasks draw from it
    torch.manual_seed(seeds[2])
    loaded: Mapping[str, Mapping[str, Task]] = tasks.manager.load(tasks.names)
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        wanted = own if settings.num_fewshot is None or own == 0 else settings.num_fewshot  # 0 of a task stays
        task.set_config(key="num_fewshot", value=wanted or 0)
        task.set_fewshot_seed(seed=seeds[3])
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's remarks on its own tasks, and bars of small files."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    had_bars = not are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(before)
        if had_bars:
            enable_progress_bars()


@contextmanager
def _task_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f"the data of a task cannot be had: {error}. Run it once where the Hugging Face hub can be reached, which "
            "leaves the data in the cache of `datasets`, or take a task whose `data_files` lie here"
        ) from error
    except ValueError as error:
        if "confirm_run_unsafe_code" not in str(error):
            raise
        raise ValueError(
            "a task runs code that the model writes, which is not done here; lm_eval's own command does, for the "
            "folder that `launch export MODEL --to hf` writes"
        ) from error
    except DatasetsError as error:
        raise ValueError(f"the data of a task cannot be read: {error.__cause__ or error}") from error
    except TemplateError as error:
        raise ValueError(f"a template of a task does not fit its data: {error}") from error


def _rows(found: Mapping[str, Mapping[str, Mapping[str, object]]]) -> Iterator[TaskRow]:
    for task, figures in found["results"].items():
        of_metric = found["higher_is_better"].get(task, {})
        for key, value in figures.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, numbers.Real):
                continue
            yield TaskRow(
                task=task,
                metric=metric,
                filter=filter_name,
                value=_number(value),
                stderr=_number(figures.get(f"{metric}_stderr,{filter_name}")),
                higher_is_better=_flag(of_metric.get(metric)),
                n_shot=_whole(found["n-shot"].get(task)),
                n_samples=_whole(found["n-samples"].get(task, {}).get("effective")),
                version=_text(found["versions"].get(task)),
            )


def _number(value: object) -> float | None:
    """None for their "N/A", and for what no JSON can hold."""
    return float(value) if isinstance(value, numbers.Real) and math.isfinite(value) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _samples(found: Mapping[str, Sequence[Mapping[str, object]]]) -> Iterator[dict[str, object]]:
    for task, samples in found.items():
        for sample in samples:
            yield {"task": task, **sample}
