"""Recipe section `metrics`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from launchyard.training.sections.section import Section


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
