"""The device of a run and its workers on each node. Pure: machines are told, not asked."""

from __future__ import annotations

from launchyard.host.devices import Device
from launchyard.launcher.backends.base import load_backend
from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.backends.hardware import HostFacts
from launchyard.launcher.plan.draft import PlanDraft
from launchyard.training.recipe import Recipe


def choose_workers(recipe: Recipe, cluster: Cluster, host: HostFacts, draft: PlanDraft) -> tuple[Device, int]:
    """Device and workers per node. Never the CPU where a GPU was asked for."""
    resources = recipe.resources
    wanted = recipe.train.device
    local = not load_backend(cluster.scheduler).TRAITS.scheduled
    if wanted == "mps":
        return "mps", _apple_worker(recipe, host, draft, local=local)
    there = len(host.gpus) if local else cluster.node.gpus or 0
    if local and cluster.node.gpus is not None:
        there = min(there, cluster.node.gpus)
    where = "this machine" if local else f"a node of {cluster.name}"
    asked = resources.gpus_per_node
    if asked is not None and asked > there:
        draft.wrong("resources.gpus_per_node", f"{asked} GPUs, but {where} has {there or 'none'}; {_fewer(there)}")
        return "cuda", resources.nproc_per_node or asked
    if wanted == "cpu" and asked:
        draft.wrong("train.device", f"cpu, but resources.gpus_per_node asks for {asked}; leave out one of them")
    if wanted == "cuda" and (not there or asked == 0):
        less = "resources.gpus_per_node is 0" if asked == 0 else f"{where} has no GPU"
        draft.wrong("train.device", f"cuda, but {less}; use train.device=cpu to train on the CPU")
    if wanted == "cpu" or asked == 0 or not there:
        if wanted == "auto" and asked is None:
            kind, other = ("CUDA GPU", "; train.device=mps is Apple's") if local and host.has_mps else ("GPU", "")
            draft.notes.append(f"no {kind} on {where}: training on the CPU{other}")
        return "cpu", resources.nproc_per_node or 1
    gpus = there if asked is None else asked
    workers = resources.nproc_per_node or gpus
    if workers > gpus:
        draft.wrong("resources.nproc_per_node", f"{workers} workers for {gpus} GPUs; each worker needs its own")
    elif workers < gpus and asked is None:
        draft.notes.append(f"using {workers} of {gpus} GPUs (resources.nproc_per_node)")
    elif workers < gpus:
        draft.wrong("resources.nproc_per_node", f"{workers} workers would leave {gpus - workers} of {gpus} GPUs idle")
    if local and any(gpu.rocm for gpu in host.gpus):
        draft.notes.append("AMD's GPUs, by ROCm, are untried: nobody has run this product there")
    return "cuda", workers


def _apple_worker(recipe: Recipe, host: HostFacts, draft: PlanDraft, *, local: bool) -> int:
    """Apple's GPU has no group of ranks, so it trains one worker of this machine."""
    if not local or not host.has_mps:
        where = "this machine is none" if local else "nodes of a scheduler are none"
        draft.wrong("train.device", f"mps, the GPU of a Mac with Apple's processor, and {where}; use cpu or cuda")
    counts = {"gpus_per_node": recipe.resources.gpus_per_node, "nproc_per_node": recipe.resources.nproc_per_node}
    for key, count in counts.items():
        if count not in (None, 1):
            draft.wrong(f"resources.{key}", f"{count}, but train.device=mps is one GPU with one worker; leave it out")
    draft.notes.append("Apple's GPUs, by MPS, are untried: nobody has run this product there")
    return 1


def _fewer(there: int) -> str:
    return f"use --gpus-per-node {there}" if there else "leave it out, or use train.device=cpu, to train on the CPU"
