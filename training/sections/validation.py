"""Recipe section `validation`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from launchyard.training.sections.section import Section

ValidationMetric = Literal["loss", "reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy"]
HIGH = ("reward_chosen", "reward_margin", "reward_accuracy")


def prefers_high(metric: str, mode: str | None) -> bool:
    """Is more of a figure better? mode: min or max, if the recipe says."""
    return metric in HIGH if mode is None else mode == "max"


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
    max_batches: int | None = Field(default=None, ge=1, description="Global batches measured; default: all there are.")
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

    @model_validator(mode="after")
    def _of_tasks(self) -> Self:
        given = sorted(key for key in self.model_fields_set if key.startswith("tasks_"))
        if given and not self.tasks and any(getattr(self, key) not in (None, False) for key in given):
            raise ValueError(f"{given[0]} is for tasks, and validation.tasks names none")
        return self
