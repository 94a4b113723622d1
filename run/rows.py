"""Rows of steps and validations, one JSON object per line: their schema, and how a file of them is read.

Readers take rows as mappings: a row may be of an older version, and hold less.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from launchyard.storage.damage import JsonObject


class StepRow(BaseModel):
    """A line of metrics/steps-NNNN.jsonl: one optimizer step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(ge=1, description="Finished optimizer steps.")
    loss: float = Field(description="Mean over all tokens of the global batch, in nats per token.")
    grad_norm: float = Field(description="Global norm of the gradient, before clipping.")
    lr: float = Field(description="Learning rate of this step.")
    tokens_seen: int = Field(description="Tokens since the first step, over all attempts.")
    tokens_per_second: float = Field(description="Of this step, over all workers.")
    step_seconds: float = Field(description="Wall time since the step before, without a save or a validation between.")
    data_wait_seconds: float = Field(description="Seconds of it that waited for data.")
    data_hash: str = Field(description="Order-free hash of the tokens of this step, 64 bits in hex.")
    mfu: float | None = Field(
        default=None, description="Model operations over what the devices could have done; absent if that is unknown."
    )
    phases: dict[str, float] = Field(
        default={}, description="Wall time of rank 0 since the row before by [phase](metrics.md), in seconds."
    )
    attempt: int = Field(description="Attempt that made the step.")
    time: float = Field(description="Time of the end, in Unix seconds.")


class ValidationRow(BaseModel):
    """A line of metrics/validation-NNNN.jsonl: one validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(ge=0, description="Finished optimizer steps; 0 before the first.")
    loss: float = Field(description="Mean over the held-out tokens, in nats per token.")
    seconds: float = Field(description="For which it took.")
    attempt: int = Field(description="Attempt that measured it.")
    time: float = Field(description="Time of the end, in Unix seconds.")


NUMBERS = ("step", "loss", "attempt", "time")


def is_row(row: JsonObject) -> bool:
    """Returns True for a step or a validation of any version; False for a line that lost what readers rely on."""
    return isinstance(row.get("step"), int) and all(isinstance(row.get(name), int | float) for name in NUMBERS)
