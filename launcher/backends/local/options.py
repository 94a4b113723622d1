"""Checks of a cluster file for this machine. It has no section of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster

SECTION = None


def check(cluster: Cluster) -> None:
    """ValueError for keys that mean nothing here."""
    if cluster.container is not None:
        raise ValueError("container: the scheduler local starts processes of this machine; run `launch` inside one")
    if cluster.setup:
        raise ValueError("setup: the scheduler local runs in your own shell; set it up there and remove this key")
