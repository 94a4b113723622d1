"""The recipe, made of the sections in training/sections/, and the recipe of a run. Light: pydantic and stdlib only.

Files, `extends`, overrides and line numbers belong to the launcher. The division of a step among workers follows from
the recipe and the world size, see training/batching.py.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from launchyard.model.adapter import Adapter
from launchyard.run import layout
from launchyard.run.layout import RECIPE
from launchyard.run.records import Job
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.storage.errors import DamagedError
from launchyard.training.notify.section import NotifyConfig
from launchyard.training.sections.checkpoint import CheckpointConfig
from launchyard.training.sections.data import DataConfig
from launchyard.training.sections.early_stopping import EarlyStoppingConfig
from launchyard.training.sections.metrics import MetricsConfig, ProfileConfig
from launchyard.training.sections.model import ModelSection
from launchyard.training.sections.optimizer import OptimizerConfig, ScheduleConfig
from launchyard.training.sections.preference import PreferenceConfig
from launchyard.training.sections.resources import ResourcesConfig, WatchdogConfig
from launchyard.training.sections.section import Section
from launchyard.training.sections.stability import StabilityConfig
from launchyard.training.sections.train import ParallelConfig, TrainConfig
from launchyard.training.sections.validation import ValidationConfig

# Keys of a section of which a recipe holds one at most.
EITHER_OR = {
    "train": ("max_steps", "max_tokens", "max_epochs"),
    "data": ("source", "mixture"),
    "validation": ("every_steps", "every_epochs"),
    "notify": ("webhook", "webhook_env"),
}


class Recipe(Section):
    """A training run. See docs/reference/recipe.md."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="Name of the runs made from it.")
    after: str | None = Field(
        default=None, description="Id, name or URL of a run that has to be completed before this one starts (SLURM)."
    )
    resources: ResourcesConfig = ResourcesConfig()
    model: ModelSection
    adapter: Adapter = Adapter()
    tokenizer: str | None = Field(
        default=None,
        description="Tokenizer file (see `launch prepare`) or a folder with one; local, URL or of the hub. Default for "
        "text: that of model.init_from.",
    )
    code: str | None = Field(
        default=None,
        description="Python file with functions of your own that the run calls: loss, batches, optimizer, on_step, "
        "on_validation, on_end. Default: none.",
    )
    data: DataConfig
    preference: PreferenceConfig | None = None
    train: TrainConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    parallel: ParallelConfig = ParallelConfig()
    stability: StabilityConfig = StabilityConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    early_stopping: EarlyStoppingConfig | None = None
    metrics: MetricsConfig = MetricsConfig()
    notify: NotifyConfig | None = None
    profile: ProfileConfig | None = None
    watchdog: WatchdogConfig = WatchdogConfig()


# -- of a run --------------------------------------------------------------------------------------------------------
def recipe_of(run: RunDir, attempt: int | Job) -> Recipe:
    """The recipe by which an attempt trains: the frozen one with the overrides and the device of its job.

    attempt: its number, or its job if that may still wait in a queue. One without a claim was started by hand,
    and has no overrides. FileNotFoundError without a recipe, ValueError if it is damaged.
    """
    job = attempt if isinstance(attempt, Job) else run.job(attempt) if attempt in run.attempts() else None
    overrides = {} if job is None else {**_overrides_in(run, job), "train.device": job.device}  # as it was planned
    return Recipe.model_validate(apply_overrides(stored_recipe(run), overrides))


def stored_recipe(run: RunDir) -> dict[str, Any]:
    """The mapping that the launch has frozen. FileNotFoundError without one, ValueError if it is damaged."""
    import yaml

    where = run.path(RECIPE)
    try:
        raw = yaml.safe_load(run.read_text(RECIPE))
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{where} holds no recipe")
    return raw


def overrides_of(run: RunDir) -> dict[str, Any]:
    """All that were ever given to a run: those of its newest attempt."""
    attempts = run.attempts()
    if not attempts:
        return {}
    return _overrides_in(run, run.job(attempts[-1]))


def _overrides_in(run: RunDir, job: Job) -> JsonObject:
    if job.damaged and job.attempt > 0:  # the first attempt has none
        where = run.path(layout.job(job.attempt))
        raise DamagedError(f"{where} is damaged, and with it the keys that resumes have changed; restore the file")
    return dict(job.overrides)


def apply_overrides(raw: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's mapping with dotted keys set; {'train.max_steps': 5} sets raw['train']['max_steps'].

    A new value replaces those that it excludes (EITHER_OR): another length, a source in place of a mixture.
    """
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        node = result
        for part in parents:
            child = node.get(part)
            node[part] = dict(child) if isinstance(child, dict) else {}
            node = node[part]
        alike = EITHER_OR.get(".".join(parents), ())
        if last in alike and value is not None:
            for other in alike:
                node.pop(other, None)
        node[last] = value
    return result
