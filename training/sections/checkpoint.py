"""Recipe section `checkpoint`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from launchyard.training.sections.section import Section
from launchyard.training.sections.validation import ValidationMetric


class CheckpointConfig(Section):
    """The schedule of saves and the number of checkpoints kept."""

    every_steps: int | None = Field(default=None, ge=1, description="Permanent checkpoint every N steps.")
    every_minutes: float | None = Field(default=10.0, gt=0, description="Temporary checkpoint every T minutes.")
    keep: int | None = Field(default=None, ge=1, description="Permanent checkpoints kept; default: all.")
    keep_best: int | None = Field(
        default=None, ge=1, description="Also keep the N best by a validation; one that is among them is saved at once."
    )
    best_metric: ValidationMetric = Field(default="loss", description="Figure of the validations that says which.")
    best_mode: Literal["min", "max"] | None = Field(
        default=None, description="Is less or more of it better? Default: known."
    )
    snapshot_steps: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default="auto",
        description="Copy the state into the agents' memory every N steps, from where a killed worker goes on; auto: "
        "so that it costs under 0.5% of the time, where the memory is there; null: never.",
    )
    async_save: bool = Field(default=True, description="Write in the background while training goes on.")
    export: bool = Field(default=False, description="Write weights as an HF directory to RUN_URL/weights at the end.")
