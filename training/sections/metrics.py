"""Recipe sections `metrics` and `profile`: where numbers go, and which steps are traced."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from launchyard.training.sections.section import Section

MOST_STEPS = 100  # of a window: all its events lie in memory until it ends

StepWindow = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]  # first and last, counted from 1
TracedRanks = list[Annotated[int, Field(ge=0)]] | Literal["all"]


class MetricsConfig(Section):
    """Destinations of the metrics besides the run directory."""

    prometheus: bool = Field(default=True, description="Serve Prometheus metrics from every worker.")
    host: str = Field(
        default="127.0.0.1",
        description="Address that the metrics listen on; 0.0.0.0: all of the machine's, for a Prometheus elsewhere.",
    )
    peak_flops: float | None = Field(
        default=None,
        gt=0,
        description="Operations per second that one device could do, for MFU; default: known of many GPUs, in bf16.",
    )
    grad_norms: int | None = Field(
        default=None,
        ge=1,
        description="Measure the gradient's norm by part of the model too, every N steps, and by rule of "
        "optimizer.groups; default: off, which costs nothing.",
    )
    trackers: list[Literal["csv", "tensorboard", "wandb", "mlflow"]] = Field(
        default=[],
        description="Trackers that also get the rows; each but csv needs its package, an extra of that name.",
    )
    project: str | None = Field(default=None, description="Project or experiment of the trackers; default: the name.")

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers are {self.trackers}; name each once")
        return self


class ProfileConfig(Section):
    """Traces of chosen steps, on chosen ranks, for Perfetto. Default: none; `launch profile RUN --steps` asks for them
    while a run trains."""

    steps: StepWindow | list[StepWindow] = Field(
        description=f"First and last step that is traced, counted from 1: [10, 12]; or several such windows, of "
        f"{MOST_STEPS} steps at most."
    )
    ranks: TracedRanks = Field(default=[0], description="Workers that trace, by rank; or all.")
    memory: bool = Field(
        default=False,
        description="Trace what is allocated and freed, too; on a GPU also a snapshot with the stack of each "
        "allocation.",
    )
    shapes: bool = Field(default=False, description="Shapes of what operators are given; slower.")
    stacks: bool = Field(default=False, description="Python stacks of operators; much slower, and larger.")

    @property
    def windows(self) -> list[StepWindow]:
        return [self.steps] if isinstance(self.steps, tuple) else self.steps

    def traces(self, rank: int) -> bool:
        return self.ranks == "all" or rank in self.ranks

    @field_validator("steps", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        """Told in words: the alternatives of a union each have an error of their own."""
        if isinstance(value, list) and any(isinstance(one, list | tuple) for one in value):
            return [_pair(one) for one in value]
        return _pair(value)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.windows:
            raise ValueError("steps: no window; give the first and the last step, such as [10, 12]")
        for window in self.windows:
            _check_window(window)
        for (_, last), (first, _) in pairwise(self.windows):
            if first <= last:
                raise ValueError(f"steps: a window begins at step {first}, within or before one that ends at {last}")
        if self.ranks != "all" and (not self.ranks or len(set(self.ranks)) < len(self.ranks)):
            raise ValueError(f"ranks: {self.ranks}; name one at least, and each once, or all")
        return self


def _pair(value: object) -> tuple[object, ...]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{value} is no window; give its first and its last step, such as [10, 12]")
    return tuple(value)


def _check_window(window: StepWindow) -> None:
    """ValueError for one that ends before it begins, or is too long."""
    first, last = window
    if last < first:
        raise ValueError(f"steps: the window ends at step {last}, before it begins at {first}")
    if last - first >= MOST_STEPS:
        raise ValueError(f"steps: the window has {last - first + 1} steps; a trace holds {MOST_STEPS} at most")
