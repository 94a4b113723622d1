"""Clusters: places where runs happen, one YAML each. Knows no recipe; a scheduler's options come with its backend."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from launcher.backends import known_backends
from launcher.bundle import cluster_files, own_clusters
from launcher.errors import UserError
from launcher.explain import nearest
from launcher.spellings import CLUSTER_WORDS
from launcher.strict import MAX_BYTES, Document, read_document, validate

_SECRET_NAME = re.compile(
    r"(^|_)(SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIALS?|API_?KEY|ACCESS_KEY|PRIVATE_KEY)(_|$)", re.IGNORECASE
)
_RESERVED = ("LAUNCHYARD_", "TORCHELASTIC_")


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeShape(Part):
    """One machine. What is left out is counted on the machine itself (scheduler local) or left to the scheduler."""

    gpus: int | None = Field(default=None, ge=0, description="GPUs.")
    cpus: int | None = Field(default=None, ge=1, description="CPU cores.")
    memory: str | None = Field(default=None, pattern=r"^\d+ ?[KMGT]i?B$", description="Memory, e.g. 64GB.")


class ClusterMetrics(Part):
    """Who may see the numbers."""

    host: str | None = Field(
        default=None, description="Address that every worker's metrics listen on; default: the recipe's, loopback."
    )


class Cluster(Part):
    """A place: who schedules, what a node has, where runs are stored, what its processes find around them."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="Name for people.")
    scheduler: Literal["local", "slurm", "ray"] = Field(description="Who starts processes.")
    node: NodeShape = NodeShape()
    storage: str = Field(
        default="runs",
        min_length=1,
        description="Folder or URL under which run directories are made; local: from here.",
    )
    environment: dict[str, str] = Field(default={}, description="Variables of all processes of a run. No secrets.")
    setup: list[str] = Field(
        default=[], description="Commands before the agent starts, where a scheduler runs scripts."
    )
    metrics: ClusterMetrics = ClusterMetrics()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
                raise ValueError(f"environment.{key}: not the name of a variable")
            if key.startswith(_RESERVED):
                raise ValueError(f"environment.{key}: reserved; the launcher sets it itself")
            if _SECRET_NAME.search(key):
                raise ValueError(
                    f"environment.{key}: looks like a secret, and a plan is stored in plain text; export it where you "
                    "launch, or use the credentials file of its service"
                )
        if self.scheduler == "local" and self.setup:
            raise ValueError("setup: the scheduler local runs in your own shell; set it up there and remove this key")
        return self


def load_cluster(name: str) -> Cluster:
    """A cluster by name (bundled or in the user's config folder) or by path; refuses what no backend can drive yet."""
    path = _find(name)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes; this is no cluster file")
    cluster = validate(Cluster, read_document(content, str(path)), CLUSTER_WORDS)
    if cluster.scheduler not in known_backends():
        raise UserError(
            f"{path}: scheduler: this version cannot drive {cluster.scheduler} yet; it can: "
            f"{', '.join(known_backends())}"
        )
    return cluster


def recipe_defaults(cluster: Cluster) -> Document:
    """What a place decides where a recipe says nothing."""
    host = cluster.metrics.host
    return Document({"metrics": {"host": host}} if host else {}, f"cluster {cluster.name}")


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file() and (os.sep in name or name.endswith((".yaml", ".yml"))):
        return path
    known = cluster_files()
    if found := known.get(name.removesuffix(".yaml")):
        return found
    near = nearest(name, list(known))
    means = f"did you mean {near}?" if near else f"there are: {', '.join(known)}"
    raise UserError(
        f"--cluster {name}: neither a file nor a known cluster; {means}",
        hint=f"your own clusters are YAML files in {own_clusters()}",
    )
