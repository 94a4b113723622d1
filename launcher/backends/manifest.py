"""A launch as objects for another program to start, such as a manifest for Kubernetes: a dry run in its words.

A backend that can has a module `manifest` in its folder.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Protocol, cast

from pydantic import Field

from launchyard.errors import UserError
from launchyard.launcher.backends.request import Frozen
from launchyard.launcher.backends.section import known_backends

if TYPE_CHECKING:
    from launchyard.launcher.backends.base import Planned
    from launchyard.launcher.backends.cluster import Cluster


class Launch(Frozen):
    """What a plan does not say of the launch that it was made for."""

    run_url: str
    recipe: str = Field(description="Resolved, as YAML.")
    folders: list[str] = Field(description="Where the data lies.")
    own_code: bool = Field(description="The recipe names a file of Python.")


class ManifestBackend(Protocol):
    """The module `manifest` in the folder of a backend."""

    def objects_text(self, form: str, cluster: Cluster, plan: Planned, launch: Launch) -> str:
        """Returns the objects as YAML. UserError for what the cluster file lacks, or what pods would not see."""


def load_manifests(backend: str, form: str) -> ManifestBackend:
    """UserError for a place that has none."""
    if importlib.util.find_spec(_module(backend)) is None:
        others = [name for name in known_backends() if importlib.util.find_spec(_module(name)) is not None]
        raise UserError(
            f"--output {form}: for a cluster whose scheduler is {' or '.join(others)}; this one is {backend}"
        )
    return cast(ManifestBackend, importlib.import_module(_module(backend)))


def _module(backend: str) -> str:
    return f"launchyard.launcher.backends.{backend}.manifest"
