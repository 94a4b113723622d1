"""Recipe section `validation`."""

from __future__ import annotations

from pydantic import Field

from launchyard.training.sections.section import Section


class SampleConfig(Section):
    """A text that the model writes at the end of the run."""

    prompt: str = Field(description="Start of the text.")
    max_new_tokens: int = Field(default=64, ge=1, description="Tokens to write.")
    temperature: float = Field(default=0.8, ge=0, description="0: always the likeliest token.")
    top_k: int | None = Field(default=50, ge=1, description="Draw from the k likeliest tokens.")


class ValidationConfig(Section):
    """The schedule and size of measuring the loss on held-out data."""

    every_steps: int | None = Field(default=None, ge=1, description="Measure every N steps; default: only at the end.")
    max_batches: int | None = Field(default=None, ge=1, description="Global batches measured; default: all there are.")
    at_start: bool = Field(default=False, description="Measure before the first step too.")
    sample: SampleConfig | None = Field(default=None, description="Write a sample at the end.")
