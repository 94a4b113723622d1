"""Recipe sections `resources` and `watchdog`: what an attempt takes of a cluster, and how long it may be silent."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from launchyard.training.sections.section import Section


class ResourcesConfig(Section):
    """The share of a cluster that one attempt takes."""

    nodes: int = Field(default=1, ge=1, description="Machines.")
    gpus_per_node: int | None = Field(default=None, ge=0, description="GPUs of each node; default: all it has.")
    nproc_per_node: int | None = Field(
        default=None, ge=1, description="Workers on each node; default: one a GPU, or one on a CPU-only node."
    )
    min_nodes: int | None = Field(
        default=None, ge=1, description="Ray: go on with as few machines when others are lost; default: nodes."
    )
    spare_nodes: int = Field(
        default=0,
        ge=0,
        description="SLURM: further machines that wait, and take the place of one that is lost or falls silent.",
    )
    time_limit: str | None = Field(default=None, description="Wall time of one attempt, e.g. 12:00:00 or 2-00:00:00.")
    max_failures: int = Field(
        default=3, ge=0, description="Failed attempts in a row without a new checkpoint before the run is given up."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError(f"min_nodes: {self.min_nodes} is more than nodes, {self.nodes}")
        return self


class WatchdogConfig(Section):
    """Time limits after which a silent worker counts as hung: its stacks are logged, and the attempt is ended."""

    enabled: bool = Field(default=True, description="Look after the workers; the agent of each node does.")
    step_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Longest time without a sign within a step; default: 45, or ten times the median step if longer.",
    )
    slow_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="The same while it starts, makes its first step, saves, validates or ends; at least three times "
        "what the place lets it wait for a store.",
    )
