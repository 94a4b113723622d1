"""The section `ray` of a cluster file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster

import re
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from launchyard.launcher.backends.ray.kuberay.options import Kubernetes
from launchyard.launcher.backends.section import Part
from launchyard.storage.redact import redact

PLACE_KEYS = ("address", "token_file", "headers_file", "ca_file")  # the way to a dashboard
_SENT = "the launcher sends its own code to the nodes"


class Ray(Part):
    """The access to a Ray cluster, and the environment of our processes on its nodes."""

    address: str | None = Field(
        default=None,
        description="Its dashboard, http(s)://HOST:8265 or unix:///PATH; default: a Ray that the launcher starts here. "
        "Behind a proxy http(s)://HOST/PATH; without a port 80 (http) or 443 (https).",
    )
    token_file: str | None = Field(
        default=None, pattern=r"^[~/]", description="File with the token of a Ray that wants one (RAY_AUTH_MODE=token)."
    )
    headers_file: str | None = Field(
        default=None,
        pattern=r"^[~/]",
        description="File with further HTTP headers for a proxy before it, a line `Name: value` each.",
    )
    ca_file: str | None = Field(
        default=None,
        pattern=r"^[~/]",
        description="PEM file with the authority that signed its certificate, in place of the system's.",
    )
    owner: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="What the node must give on which the owner of a run runs, by Ray's names, e.g. {CPU: 1} or a "
        "resource of your own; default: nothing, on Ray's head.",
    )
    python: str | None = Field(
        default=None, min_length=1, description="Interpreter of the nodes; default: python, or this one for a Ray here."
    )
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="More that each node must have, by Ray's names, e.g. {'accelerator_type:H100': 0.001}."
    )
    runtime_env: dict[str, Any] = Field(
        default={}, description="Ray's runtime environment for our processes: pip, uv, conda, image_uri and the like."
    )
    wait_seconds: float = Field(
        default=60.0, ge=0, description="For all nodes, before fewer are taken where resources.min_nodes allows it."
    )
    kubernetes: Kubernetes | None = Field(
        default=None, description="The pods of a Ray that KubeRay starts, for `--dry-run --output kuberay`."
    )

    @property
    def place(self) -> dict[str, str]:
        """The way to its dashboard, as submissions record it."""
        return {key: value for key in PLACE_KEYS if (value := getattr(self, key)) is not None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        taken = {"env_vars": "use environment", "working_dir": _SENT, "py_modules": _SENT, "excludes": _SENT}
        for key in self.runtime_env.keys() & taken.keys():
            raise ValueError(f"runtime_env.{key}: {taken[key]}")
        for key in self.resources.keys() & {"CPU", "GPU", "memory", "object_store_memory"}:
            raise ValueError(f"resources.{key}: set it in node (cpus, gpus, memory)")
        if self.address is not None and not re.fullmatch(r"https?://[^\s/@]+(/[^\s@]*)?|unix:///\S+", self.address):
            raise ValueError(
                f"address: {redact(self.address)} is not its dashboard's address, such as http://HOST:8265 "
                "(ray://HOST:10001 is for Ray's client)"
            )
        return self


SECTION = Ray


def check(cluster: Cluster) -> None:
    """ValueError for keys that Ray has under other names."""
    if cluster.container is not None:
        raise ValueError("container: on Ray an image is ray.runtime_env.image_uri")
    if cluster.setup:
        raise ValueError("setup: Ray runs no script; put what nodes need into ray.runtime_env")
