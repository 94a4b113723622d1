"""Rows of steps and validations, one JSON object per line: their schema, and how a file of them is read.

Readers take rows as mappings: a row may be of an older version, and hold less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from launchyard.storage.damage import JsonObject


class Means(BaseModel):
    """What a model does on a batch: the loss that is made smaller, and what is measured beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: float = Field(description="Mean over all labels, in nats per token; of preferences a mean over pairs.")
    reward_chosen: float | None = Field(default=None, description="Preferences: mean reward of the better answers.")
    reward_rejected: float | None = Field(default=None, description="Preferences: mean reward of the worse answers.")
    reward_margin: float | None = Field(default=None, description="Preferences: mean difference of the two rewards.")
    reward_accuracy: float | None = Field(
        default=None, description="Preferences: share of pairs whose better answer has the higher reward."
    )


class StepRow(Means):
    """A line of metrics/steps-NNNN.jsonl: one optimizer step, its means over the global batch."""

    step: int = Field(ge=1, description="Finished optimizer steps.")
    grad_norm: float = Field(description="Global norm of the gradient, before clipping.")
    lr: float = Field(description="Learning rate of this step.")
    tokens_seen: int = Field(description="Tokens since the first step, over all attempts; padding is none.")
    source_tokens: dict[str, int] | None = Field(
        default=None, description="Of a mixture: those tokens by the source they are of, in the order of data.mixture."
    )
    labels: int | None = Field(
        default=None, description="Tokens of this step that have a label; fewer than all where prompts have none."
    )
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


class ValidationRow(Means):
    """A line of metrics/validation-NNNN.jsonl: one validation, its means over the held-out data."""

    step: int = Field(ge=0, description="Finished optimizer steps; 0 before the first.")
    seconds: float = Field(description="For which it took.")
    attempt: int = Field(description="Attempt that measured it.")
    time: float = Field(description="Time of the end, in Unix seconds.")


SPEED_ROWS = 20  # steps over which speed is averaged
PACE_ROWS = 100  # and the time of a step, in which saves and validations come and go
NUMBERS = ("step", "loss", "attempt", "time")


def is_row(row: JsonObject) -> bool:
    """Returns True for a step or a validation of any version; False for a line that lost what readers rely on."""
    return isinstance(row.get("step"), int) and all(isinstance(row.get(name), int | float) for name in NUMBERS)


@dataclass(frozen=True)
class Pace:
    """Speed of the last steps of one attempt, and wall time a step, each with all that lay between them."""

    tokens_per_second: float
    step_seconds: float

    def seconds_to(self, max_steps: int, *, step: int) -> float:
        return max(0, max_steps - step) * self.step_seconds


def pace_of(rows: Sequence[JsonObject]) -> Pace | None:
    """The pace at the last of these rows of steps, which are of one attempt, oldest first; None if they do not tell."""
    if not rows or not all(rows[-1].get(name) for name in ("tokens_per_second", "step_seconds")):
        return None
    speed = float(rows[-1]["tokens_per_second"])
    each = float(rows[-1]["step_seconds"])
    seconds, steps, tokens = _between(rows[-SPEED_ROWS:])
    if seconds > 0 and steps > 0 and tokens > 0:
        speed = tokens / seconds
    seconds, steps, _ = _between(rows[-PACE_ROWS:])
    if seconds > 0 and steps > 0:
        each = seconds / steps
    return Pace(speed, each)


def _between(rows: Sequence[JsonObject]) -> tuple[float, int, int]:
    """Seconds, steps and tokens from the first to the last."""
    first = rows[0]
    last = rows[-1]
    tokens = int(last.get("tokens_seen", 0)) - int(first.get("tokens_seen", 0))
    return float(last["time"]) - float(first["time"]), int(last["step"]) - int(first["step"]), tokens
