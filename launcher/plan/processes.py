"""The processes of a plan, outermost first. Pure, like the plan that holds them."""

from __future__ import annotations

from collections.abc import Sequence

from launchyard.host.environment import AGENT_PID, MARK_ATTEMPT, MARK_NODE, MARK_RUN, SCRATCH
from launchyard.host.processes import SAFE_PATH
from launchyard.launcher.agent.start.torchrun_process import WORKER
from launchyard.launcher.agent.torchrun import torchrun_argv
from launchyard.launcher.agent.torchrun_watch import SURVIVOR_SECONDS
from launchyard.launcher.backends.base import load_backend
from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.backends.request import ATTEMPT, ENDPOINT, Ask, Process

HERE = "127.0.0.1:{port}"  # where the workers of a single machine meet


def plan_processes(cluster: Cluster, ask: Ask, *, flags: Sequence[str]) -> list[Process]:
    """Every process of the first attempt. Ports and ids are drawn anew in each attempt.

    flags: optional ones that the installed torchrun knows.
    """
    backend = load_backend(cluster.scheduler)
    inside = backend.worker_python(cluster, ask.python)
    found = [backend.first_process(cluster, ask)]
    for node_rank in range(ask.shape.nnodes):
        torchrun = torchrun_argv(
            python=inside,
            nnodes=ask.shape.nnodes,
            node_rank=node_rank,
            nproc_per_node=ask.shape.nproc_per_node,
            rdzv_endpoint=ENDPOINT if backend.TRAITS.scheduled else HERE,
            rdzv_id=ATTEMPT,
            module=WORKER,
            args=[ask.run_url],
            shutdown_timeout=int(SURVIVOR_SECONDS),
            flags=frozenset(flags),
        )
        marks = _marks(ask.run_url, node_rank, ask.shape.device)
        found.append(Process(role="torchrun", node_rank=node_rank, argv=torchrun, env=marks))
        worker = [inside, "-u", "-m", WORKER, ask.run_url]
        found.append(Process(role="worker", node_rank=node_rank, argv=worker, env={}))
    return found


def _marks(run_url: str, node_rank: int, device: str) -> dict[str, str]:
    """Variables that the agent adds for torchrun and its workers."""
    env = {
        MARK_RUN: run_url,
        MARK_ATTEMPT: "0",
        MARK_NODE: str(node_rank),
        SCRATCH: "{private folder}",
        AGENT_PID: "{agent}",
        **SAFE_PATH,
    }
    return env if device == "cuda" else {**env, "CUDA_VISIBLE_DEVICES": ""}
