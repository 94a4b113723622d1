"""Recipe sections `optimizer` and `schedule`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from launchyard.training.sections.section import Section


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter 2019); biases, norms and other vectors get no weight decay."""

    name: Literal["adamw"] = Field(default="adamw", description="The optimizer.")
    lr: float = Field(default=3e-4, gt=0, description="Peak learning rate.")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="Decay rates of the two moments.")
    eps: float = Field(default=1e-8, gt=0, description="Term added to the denominator.")
    weight_decay: float = Field(default=0.1, ge=0, description="Decoupled decay of matrices.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}; each must lie in [0, 1)")
        return self


class ScheduleConfig(Section):
    """The learning rate as a pure function of the step."""

    name: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="Shape after the warmup.")
    warmup_steps: int | float = Field(
        default=0, ge=0, description="Steps of linear warmup, or a share of all steps < 1."
    )
    min_lr: float = Field(default=0.0, ge=0, description="Learning rate at the end.")

    @field_validator("warmup_steps")
    @classmethod
    def _whole_steps(cls, steps: float) -> float:
        if steps > 1 and steps != int(steps):
            raise ValueError(f"{steps} is neither a whole number of steps nor a share below 1")
        return steps
