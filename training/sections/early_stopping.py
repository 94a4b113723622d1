"""Recipe section `early_stopping`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from launchyard.training.sections.section import Section
from launchyard.training.sections.validation import ValidationMetric


class EarlyStoppingConfig(Section):
    """The end of a run before its last step, decided by its validations. Default: none."""

    metric: ValidationMetric = Field(default="loss", description="Figure of the validations.")
    mode: Literal["min", "max"] | None = Field(
        default=None, description="Is less or more of it better? Default: known."
    )
    patience: int = Field(default=3, ge=1, description="Validations in a row without an improvement that end the run.")
    min_delta: float = Field(default=0.0, ge=0, description="An improvement is more than this.")
    threshold: float | None = Field(default=None, description="A figure as good as this ends the run.")
    divergence: float | None = Field(default=None, description="A figure worse than this ends the run.")
    finite: bool = Field(default=True, description="A figure that is no number ends the run.")
