"""The values that a user's functions are called with, and the word by which they end a run. Light: no live tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StepDone:
    """One finished optimizer step: means over its global batch."""

    step: int  # finished optimizer steps, 1 after the first
    loss: float
    grad_norm: float | None  # before clipping; None of a step that was skipped
    lr: float
    tokens: int  # of this step, over all workers
    labels: int  # of those
    tokens_seen: int  # since the first step, over all attempts
    figures: Mapping[str, float]  # of the loss, by name


@dataclass(frozen=True)
class ValidationDone:
    """One validation of one set of held-out data: its means."""

    step: int  # finished optimizer steps, 0 before the first
    loss: float
    seconds: float
    figures: Mapping[str, float]  # of the loss, by name; of text also perplexity and bits_per_byte
    set: str = "main"  # that of data.validation, or a name of validation.sets


@dataclass(frozen=True)
class RunEnd:
    """The end of an attempt that was not cut short by an error: everything is saved."""

    run_id: str
    name: str
    url: str  # of the run directory, without credentials
    outcome: str  # completed or stopped
    reason: str  # done, or for what it was stopped
    step: int
    max_steps: int
    validation_loss: float | None  # the newest, of the main set
    checkpoint: str | None  # folder in the run directory


class StopTraining(Exception):
    """Raised by on_step or on_validation: the run has reached what it is for, and ends, saved and complete."""
