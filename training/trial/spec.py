"""What the worker of a trial is told by the launcher, and what it tells in the end. Light: files and numbers only."""

from __future__ import annotations

from pydantic import Field

from launchyard.training.sections.section import Section

TRIAL = "trial.json"  # in the run directory of the trial
RESULT = "trial-result.json"


class Trial(Section):
    """Steps to make. With lr_range the learning rate rises through it, each step by the same factor."""

    n_steps: int = Field(ge=1)
    lr_range: tuple[float, float] | None = Field(default=None, description="Of the first step and of the last.")
    counts_tensors: bool = Field(default=False, description="One step more, in which a worker on a CPU counts them.")
    memory_bytes: int | None = Field(default=None, ge=1, description="The most that a worker on a CPU may take.")

    def lr(self, step: int) -> float | None:
        """Of the step that follows `step` finished ones; None where the recipe says it."""
        if self.lr_range is None:
            return None
        first, last = self.lr_range
        return first * (last / first) ** (min(step, self.n_steps - 1) / max(1, self.n_steps - 1))


class TrialResult(Section):
    """Of the first worker; bytes. runtime: what its process held before there was a model."""

    peak: int
    runtime: int
    tensors: int | None = Field(default=None, description="The most that storages of tensors took in that step.")
    cpu_seconds: tuple[float, ...] = Field(default=(), description="Of its process, all threads, in each step.")
