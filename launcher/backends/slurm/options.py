"""The section `slurm` of a cluster file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster

import re
from typing import Self

from pydantic import Field, model_validator

from launchyard.launcher.backends.section import Part

OURS = {
    "job-name": " (the run's id)",
    "nodes": ": --nodes, or resources.nodes of the recipe",
    "ntasks": "",
    "ntasks-per-node": ": one agent a node",
    "output": " (launch logs shows it)",
    "error": "",
    "open-mode": "",
    "requeue": "",
    "no-requeue": "",
    "signal": ": notice_seconds",
    "time": ": time_limit",
    "array": "",
    "dependency": "",
    "wrap": "",
    "export": ": environment",
} | {key: f": slurm.{key}" for key in ("partition", "account", "qos", "constraint", "exclude")}


class Slurm(Part):
    """Options of sbatch at this site. Keys left out have the site's defaults."""

    partition: str | None = Field(default=None, min_length=1, description="Partition, or several with commas.")
    account: str | None = Field(default=None, min_length=1, description="Account that is charged.")
    qos: str | None = Field(default=None, min_length=1, description="Quality of service.")
    constraint: str | None = Field(default=None, min_length=1, description="Features that nodes must have.")
    exclude: str | None = Field(default=None, min_length=1, description="Nodes never to use.")
    time_limit: str | None = Field(
        default=None, description="Wall time of one attempt where a recipe names none, e.g. 24:00:00."
    )
    notice_seconds: int = Field(
        default=120, ge=10, description="How long before the time limit the run saves and makes room."
    )
    extra: dict[str, str | int | bool] = Field(
        default={},
        description="More options of sbatch by their long names, e.g. {gres: 'gpu:h100:8', exclusive: true}.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in self.extra:
            if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
                raise ValueError(f"extra.{key}: write the long name of an sbatch option without --, e.g. mem-per-gpu")
            if key in OURS:
                raise ValueError(f"extra.{key}: the launcher sets it itself{OURS[key]}")
        return self


SECTION = Slurm


def check(cluster: Cluster) -> None:
    """No checks: every key of a cluster file is used."""
