"""Findings about this machine, which plans and trains here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING

from launchyard.host.packages import install_command
from launchyard.launcher.backends.findings import Finding
from launchyard.launcher.backends.hardware import probe_host

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster


def doctor(cluster: Cluster, folder: str | None, saves: Sequence[float]) -> Iterator[Finding]:
    host = probe_host()
    if find_spec("torch") is None:
        yield Finding(what="torch", level="error", found="not installed", fix=install_command("train"))
    else:
        yield Finding(what="torch", level="ok", found=metadata.version("torch"))
    gpus = ", ".join(sorted({gpu.name for gpu in host.gpus}))
    found = f"{len(host.gpus)} × {gpus}" if host.gpus else f"no GPU, {host.cpus} CPU cores"
    yield Finding(what="device", level="ok", found=found)
