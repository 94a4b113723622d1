"""Findings about this machine, which plans and trains here. Its devices one by one: launcher/doctor/devices.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from launchyard.launcher.backends.findings import Finding
from launchyard.launcher.backends.hardware import probe_host

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster


def doctor(cluster: Cluster, folder: str | None, saves: Sequence[float]) -> Iterator[Finding]:
    host = probe_host()
    gpus = ", ".join(sorted({gpu.name for gpu in host.gpus}))
    found = f"{len(host.gpus)} × {gpus}" if host.gpus else f"no GPU, {host.cpus} CPU cores"
    yield Finding(what="a launch takes", level="ok", found=found)
