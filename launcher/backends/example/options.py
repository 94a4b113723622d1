"""The section `example` of a cluster file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from launchyard.launcher.backends.section import Part

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster


class Example(Part):
    """The queue of jobs: its folder, and the number that run at a time."""

    spool: str | None = Field(
        default=None, pattern=r"^[~/]", description="Folder in which jobs wait; default: in the user's state folder."
    )
    slots: int = Field(default=1, ge=1, description="Jobs that run at a time.")


SECTION = Example


def check(cluster: Cluster) -> None:
    """ValueError for keys that mean nothing here."""
    if cluster.container is not None:
        raise ValueError("container: the scheduler example starts processes of this machine; remove this key")
    if cluster.setup:
        raise ValueError("setup: the scheduler example runs no script; use environment, or set it up where you launch")
