"""The nodes of a Ray cluster, by its dashboard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from launchyard.launcher.backends.offer import Offer
from launchyard.launcher.backends.ray.client import Dashboard
from launchyard.launcher.format import size

_KIND = "accelerator_type:"


def offers(address: str | None) -> list[Offer]:
    """Its kinds of nodes, the most frequent first; nothing without an address. LaunchError if it does not answer."""
    if address is None or not address.startswith(("http://", "https://", "unix:///")):
        return []
    nodes = [node for node in Dashboard(address).nodes() if node.get("raylet", {}).get("state") == "ALIVE"]
    kinds = Counter(_kind(node["raylet"].get("resourcesTotal", {})) for node in nodes)
    return [_offer(address, *kind, number) for kind, number in kinds.most_common()]


def _kind(totals: Mapping[str, float]) -> tuple[int, int, int, str]:
    """CPUs, GPUs, memory rounded to GiB, and the kind of GPU."""
    gpu = next((name.removeprefix(_KIND) for name in sorted(totals) if name.startswith(_KIND)), "")
    return int(totals.get("CPU", 0)), int(totals.get("GPU", 0)), int(totals.get("memory", 0)) >> 30, gpu


def _offer(address: str, cpus: int, gpus: int, memory: int, gpu: str, number: int) -> Offer:
    devices = f"{gpus} × {gpu or 'GPU'}, " if gpus else ""
    each = f"{devices}{cpus} CPUs, {size(memory << 30)}"
    return Offer(
        scheduler="ray",
        part=f"{number} of {cpus} CPUs" if not gpus else f"{number} of {gpus} GPUs",
        title=f"Ray at {address}: {number} node{'s' if number > 1 else ''} of {each}",
        nodes=number,
        gpus=gpus,
        gpu=gpu,
        cpus=cpus,
        memory=(memory << 30) or None,
        default=True,
        section={"address": address},
    )
