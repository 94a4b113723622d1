"""The place where a new recipe shall run: this machine, a cluster that is known, or one that a scheduler offers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from launchyard.errors import LaunchError
from launchyard.launcher.backends.base import load_backend, load_site
from launchyard.launcher.backends.cluster import Cluster, load_cluster
from launchyard.launcher.backends.hardware import HostFacts, probe_host
from launchyard.launcher.backends.offer import Offer
from launchyard.launcher.backends.section import FIRST, known_backends
from launchyard.launcher.format import bytes_of, size
from launchyard.model.devices import REACHED, peak_flops

# Operations per second: of a core, as the quickstart makes them on two of them; of a GPU that is in no table.
CORE_FLOPS = 5e10
UNKNOWN_GPU_FLOPS = 100e12
# Of kinds as sites name them. Where two sizes were sold, the smaller.
GPU_BYTES = {
    "h200": 141, "h100": 80, "h800": 80, "b200": 180, "gh200": 96, "a100": 40, "a800": 80, "l40s": 48, "l40": 48,
    "a40": 48, "a6000": 48, "a10": 24, "l4": 24, "4090": 24, "3090": 24, "v100": 16, "t4": 16, "p100": 16,
}  # fmt: skip
_NO_BF16 = ("v100", "t4", "p100", "gtx", "2080")


@dataclass(frozen=True)
class Spot:
    """A place as far as a recipe must fit it. `memory`: bytes that a worker has, None if not known.

    file: the cluster file to write; None where there is one, or none is needed.
    """

    cluster: Cluster
    title: str
    workers: int
    gpu: str
    memory: int | None
    bf16: bool
    has_gpus: bool
    file: str | None = None

    @property
    def scheduled(self) -> bool:
        return load_backend(self.cluster.scheduler).TRAITS.scheduled

    def flops(self, nodes: int, cpus: int) -> float:
        """Operations per second of so many nodes, as a guess."""
        if not self.has_gpus:
            return CORE_FLOPS * cpus * nodes
        return (peak_flops(self.gpu) or UNKNOWN_GPU_FLOPS) * REACHED * self.workers * nodes


def this_machine() -> Spot:
    """Its GPUs, else its cores."""
    host = probe_host()
    return Spot(
        cluster=load_cluster(FIRST),
        title=_describe(host),
        workers=len(host.gpus) or 1,
        gpu=host.gpus[0].name if host.gpus else "",
        memory=min((gpu.memory for gpu in host.gpus), default=host.memory),
        bf16=bool(host.gpus) and all(gpu.capability >= (8, 0) for gpu in host.gpus),
        has_gpus=bool(host.gpus),
    )


def _describe(host: HostFacts) -> str:
    """A machine in words."""
    gpus = f"{len(host.gpus)} × {host.gpus[0].name}, " if host.gpus else ""
    none = "" if host.gpus else ", no GPU"
    return f"this machine: {gpus}{host.cpus} core{'s' if host.cpus > 1 else ''}, {size(host.memory)}{none}"


def known_place(name: str, gpu: str, memory: int | None) -> Spot:
    """A cluster that has a file. gpu, memory: of its GPUs, where a person has said so."""
    if name == FIRST:
        return this_machine()
    cluster = load_cluster(name)
    gpus = cluster.node.gpus or 0
    of_node = bytes_of(cluster.node.memory) if cluster.node.memory else None
    return _remote(cluster, f"cluster {cluster.name}", gpus, gpu, memory or (None if gpus else of_node), None)


def find_offers(address: str | None = None) -> list[Offer]:
    """All that schedulers offer from here, or at an address. LaunchError if a given address does not answer."""
    found = []
    for name in known_backends():
        try:
            found += load_site(name).offers(address)
        except LaunchError:
            if address is not None:
                raise
    return list(distinct(sorted(found, key=lambda offer: (not offer.default, -offer.gpus))))


def distinct(offers: Sequence[Offer]) -> Iterator[Offer]:
    """The same, with a number behind the name of a part that has several kinds of nodes."""
    for number, offer in enumerate(offers):
        before = sum(other.part == offer.part for other in offers[:number])
        yield replace(offer, part=f"{offer.part}:{before + 1}") if before else offer


def offered_place(offer: Offer, *, name: str, storage: str, chosen: Mapping[str, str], gpu_bytes: int | None) -> Spot:
    """A place whose cluster file is to be written. chosen: values for `choices`, and more of its section."""
    section = {**offer.section, **chosen}
    node = {"gpus": offer.gpus, "cpus": offer.cpus} if offer.gpus else {"cpus": offer.cpus}
    node = {key: value for key, value in node.items() if value}
    facts = {"name": name, "scheduler": offer.scheduler, "node": node, "storage": storage, offer.scheduler: section}
    cluster = Cluster.model_validate(facts)
    memory = gpu_bytes if offer.gpus else offer.memory
    return _remote(cluster, offer.title, offer.gpus, offer.gpu, memory, cluster_text(offer, facts))


def _remote(cluster: Cluster, title: str, gpus: int, gpu: str, memory: int | None, file: str | None) -> Spot:
    return Spot(
        cluster=cluster,
        title=title,
        workers=gpus or 1,
        gpu=gpu,
        memory=memory or (gpu_bytes_of(gpu) if gpus else None),
        bf16=gpus > 0 and not any(old in gpu.lower() for old in _NO_BF16),
        has_gpus=gpus > 0,
        file=file,
    )


def gpu_bytes_of(kind: str) -> int | None:
    """Memory of a kind of GPU, by the name that a site gives it; None if that says nothing."""
    if sized := re.search(r"\b(\d+)\s?gi?b?\b", kind.lower().replace("_", " ")):
        return int(sized[1]) << 30
    name = re.sub(r"[^a-z0-9]", "", kind.lower())
    found = next((gigabytes for part, gigabytes in GPU_BYTES.items() if part in name), None)
    return None if found is None else found << 30


# -- the cluster file ------------------------------------------------------------------------------------------------
def cluster_text(offer: Offer, facts: Mapping[str, object]) -> str:
    """A commented cluster file."""
    from launchyard.launcher.new.text import commented, schema_line

    reasons = {
        "name": "launch RECIPE --cluster NAME",
        "scheduler": "it starts the processes",
        "node": "what one node gives to a run",
        "storage": "where runs go: a folder that all nodes see, or s3://BUCKET/PREFIX",
        f"{offer.scheduler}.time_limit": "of one attempt where a recipe names none; a run goes on in the next",
    }
    reasons |= {f"{offer.scheduler}.{key}": f"of {len(names)} you may use" for key, names in offer.choices.items()}
    head = [f"# {offer.title}; found by `launch new`.", schema_line("cluster")]
    return "\n".join([*head, *commented(facts, reasons)]) + "\n"
