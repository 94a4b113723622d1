"""Recipe section `validation`."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from launchyard.training.sections.section import Section

FIGURES = ("loss", "reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy")
HIGH = ("reward_chosen", "reward_margin", "reward_accuracy")
MAIN = "main"  # the set that data.validation holds out, beside those of validation.sets
SET_NAME = r"[a-z0-9_-]{1,32}"
RESERVED = (MAIN, *FIGURES, "perplexity", "bits_per_byte")  # trackers have a figure of the main set under its name


def set_and_figure(metric: str) -> tuple[str, str]:
    """The set whose figure NAME.loss or loss is, and which one."""
    name, _, figure = metric.rpartition(".")
    return name or MAIN, figure


def prefers_high(metric: str, mode: str | None) -> bool:
    """Is more of a figure better? mode: min or max, if the recipe says."""
    return set_and_figure(metric)[1] in HIGH if mode is None else mode == "max"


def _metric(metric: str) -> str:
    name, figure = set_and_figure(metric)
    if figure not in FIGURES or re.fullmatch(SET_NAME, name) is None:
        more = "; they rank as the loss does" if figure in ("perplexity", "bits_per_byte") else ""
        raise ValueError(
            f"{metric} is no figure to judge by{more}; use {', '.join(FIGURES)}, or that of a set of validation.sets, "
            "such as NAME.loss"
        )
    return metric.removeprefix(f"{MAIN}.")


ValidationMetric = Annotated[str, AfterValidator(_metric)]


class SampleConfig(Section):
    """A text that the model writes, at the end of the run and before."""

    prompt: str = Field(description="Start of the text.")
    every_steps: int | None = Field(
        default=None, ge=1, description="Write one every N steps, by a checkpoint; default: only at the end."
    )
    max_new_tokens: int = Field(default=64, ge=1, description="Tokens to write.")
    temperature: float = Field(default=0.8, ge=0, description="0: always the likeliest token.")
    top_k: int | None = Field(default=50, ge=1, description="Draw from the k likeliest tokens.")


class ValidationConfig(Section):
    """The schedule and size of measuring the loss on held-out data."""

    every_steps: int | None = Field(default=None, ge=1, description="Measure every N steps; default: only at the end.")
    every_epochs: float | None = Field(
        default=None,
        gt=0,
        description="Instead of every_steps: measure whenever such a share of an epoch is read, such as 0.25. An epoch "
        "is that of train.max_epochs; of a mixture, as many sequences as all its sources hold.",
    )
    sets: dict[str, str | list[str]] = Field(
        default={},
        description="More held-out data, NAME -> source as data.source takes it: the whole of it is measured, beside "
        "the part that data.validation holds out, at every validation.",
    )
    max_batches: int | None = Field(
        default=None, ge=1, description="Global batches measured, of each set; default: all there are."
    )
    sanity_batches: int | None = Field(
        default=None,
        ge=1,
        description="Before the first step measure so many global batches and record nothing, so that a validation "
        "that cannot work ends the run at once; default: none.",
    )
    at_start: bool = Field(default=False, description="Measure before the first step too.")
    ema: bool = Field(
        default=False, description="Measure the averaged weights (train.ema_decay) instead of those that train."
    )
    sample: SampleConfig | None = Field(default=None, description="Write a text, at the end or now and then.")
    tasks: list[str] = Field(
        default=[],
        description="Tasks of lm-evaluation-harness that checkpoints are asked: names, patterns or YAML files. Each "
        "point is a row and a series.",
    )
    tasks_every_steps: int | None = Field(
        default=None, ge=1, description="Ask them every N steps, of a checkpoint; default: only at the end."
    )
    tasks_limit: int | None = Field(default=None, ge=1, description="Only the first N samples of each task.")
    tasks_num_fewshot: int | None = Field(
        default=None, ge=0, description="Answered samples before each; default: as the task has it."
    )
    tasks_chat_template: bool = Field(default=False, description="Ask by the model's chat template.")

    @property
    def repeats(self) -> bool:
        """Is there a validation before the last step?"""
        return self.every_steps is not None or self.every_epochs is not None

    @model_validator(mode="after")
    def _of_sets(self) -> Self:
        if self.every_steps is not None and self.every_epochs is not None:
            raise ValueError("give every_steps or every_epochs, not both")
        for name, source in self.sets.items():
            if re.fullmatch(SET_NAME, name) is None:
                raise ValueError(f"sets.{name}: a name has a to z, 0 to 9, _ and -, and 32 of them at most")
            if name in RESERVED:
                raise ValueError(f"sets.{name}: the name is taken; none may be {', '.join(RESERVED)}")
            if not source:
                raise ValueError(f"sets.{name} is empty; name a prepared folder, or text files")
        return self

    @model_validator(mode="after")
    def _of_tasks(self) -> Self:
        given = sorted(key for key in self.model_fields_set if key.startswith("tasks_"))
        if given and not self.tasks and any(getattr(self, key) not in (None, False) for key in given):
            raise ValueError(f"{given[0]} is for tasks, and validation.tasks names none")
        return self
