"""The section `ray.kubernetes` of a cluster file: what a manifest needs and a plan does not know. Names, no secrets."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from launchyard.launcher.backends.section import Part
from launchyard.launcher.format import SIZE

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]  # of an object of Kubernetes
Folder = Annotated[str, Field(pattern=r"^/[^\s:]+$")]


class Toleration(Part):
    """A taint of nodes that our pods bear, in Kubernetes' words."""

    key: str | None = Field(default=None, description="Key of the taint; left out, every one.")
    operator: str = Field(default="Exists", pattern="^(Exists|Equal)$", description="Exists, or Equal with a value.")
    value: str | None = Field(default=None, description="With the operator Equal.")
    effect: str | None = Field(default=None, description="NoSchedule, PreferNoSchedule or NoExecute; default: each.")


class Kubernetes(Part):
    """The pods in which KubeRay starts this Ray: `--dry-run --output kuberay`. Other uses need none of it."""

    image: str = Field(min_length=1, description="With launchyard, torch and Ray, such as that of `make image-ray`.")
    namespace: Name = Field(default="default", description="Of all that is made.")
    labels: dict[str, str] = Field(
        default={}, description="Of all that is made, e.g. {release: prometheus}, by which its operator finds it."
    )
    service_account: Name | None = Field(default=None, description="Of the pods, e.g. one with a role for the store.")
    secrets: list[Name] = Field(
        default=[], description="Secrets whose keys become variables, such as AWS_ACCESS_KEY_ID."
    )
    secret_folders: dict[Folder, Name] = Field(
        default={}, description="Secrets whose keys become files: folder of the pods, and the Secret's name."
    )
    claims: dict[Folder, Name] = Field(
        default={}, description="Storage that all pods share: folder of the pods, and a PersistentVolumeClaim's name."
    )
    pull_secrets: list[Name] = Field(default=[], description="Secrets with which the image is pulled.")
    node_selector: dict[str, str] = Field(default={}, description="Labels of the nodes on which workers run.")
    tolerations: list[Toleration] = Field(default=[], description="Taints of nodes that workers bear.")
    gpu: str = Field(default="nvidia.com/gpu", pattern=r"^[\w.-]+/[\w.-]+$", description="Kubernetes' name of a GPU.")
    limits: dict[str, str] = Field(
        default={}, description="More that a worker's pod is given, e.g. {rdma/ib: '1'}; not cpu, memory or GPUs."
    )
    shared_memory: str | None = Field(
        default=None, pattern=SIZE, description="Size of /dev/shm; default: 1 GiB, and 1 GiB more for each worker."
    )
    head_cpus: int = Field(default=2, ge=1, description="CPUs of the head's pod; Ray is told that it has none.")
    head_memory: str = Field(default="8GiB", pattern=SIZE, description="Memory of the head's pod.")
    grace_seconds: int = Field(
        default=120, ge=1, description="For a run to save in, and to leave a pod that is to be ended."
    )
    retries: int = Field(default=3, ge=0, description="New clusters for a RayJob whose cluster was lost.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in self.limits.keys() & {"cpu", "memory", self.gpu}:
            raise ValueError(f"limits.{key}: set it in node (cpus, memory, gpus)")
        for folder in self.secret_folders.keys() & self.claims.keys():
            raise ValueError(f"claims.{folder}: secret_folders has this folder, too")
        return self

    def sees(self, place: str) -> bool:
        """Whether all pods see a place: a URL of a store, or a folder in a claim."""
        return "://" in place or any(f"{place}/".startswith(f"{folder.rstrip('/')}/") for folder in self.claims)
