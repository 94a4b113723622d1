"""The processes of a plan, and what a scheduler is sent to start them. Pure, like the plan that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launchyard.host.environment import MARK_ATTEMPT, MARK_NODE, MARK_RUN
from launchyard.host.folders import job_folder
from launchyard.host.processes import SAFE_PATH, python_words
from launchyard.launcher.agent.torchrun import torchrun_argv
from launchyard.launcher.agent.torchrun_watch import SURVIVOR_SECONDS
from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.backends.ray import request
from launchyard.launcher.backends.slurm import request as slurm_request
from launchyard.launcher.plan.hardware import HostFacts
from launchyard.launcher.plan.plan import Process

# Drawn anew in each attempt.
ATTEMPT, ENDPOINT = "{attempt}", "{endpoint}"


@dataclass(frozen=True)
class Shape:
    """Who works. `gpus`: of each node, asked of a scheduler. `sizes`: numbers of nodes that will do, the most first."""

    nnodes: int
    nproc: int
    device: Literal["cpu", "cuda"]
    gpus: int
    sizes: tuple[int, ...]


def plan_processes(
    run_url: str, cluster: Cluster, shape: Shape, *, env: dict[str, str], host: HostFacts
) -> list[Process]:
    """Every process of the first attempt, outermost first. Ports and ids are drawn anew in each attempt."""
    inside = _python(cluster, host)
    head = "127.0.0.1:{port}" if cluster.scheduler == "local" else ENDPOINT
    found = [_topmost(run_url, cluster, shape, head, env=env, host=host)]
    for node_rank in range(shape.nnodes):
        torchrun = torchrun_argv(
            python=inside,
            nnodes=shape.nnodes,
            node_rank=node_rank,
            nproc_per_node=shape.nproc,
            rdzv_endpoint=head,
            rdzv_id=ATTEMPT,
            module="launchyard.training.worker",
            args=[run_url],
            shutdown_timeout=int(SURVIVOR_SECONDS),
            flags=frozenset(host.torchrun_flags),
        )
        marks = _marks(run_url, node_rank, shape.device)
        found.append(Process(role="torchrun", node_rank=node_rank, argv=torchrun, env=marks))
        worker = [inside, "-u", "-m", "launchyard.training.worker", run_url]
        found.append(Process(role="worker", node_rank=node_rank, argv=worker, env={}))
    return found


def _python(cluster: Cluster, host: HostFacts) -> str:
    """The interpreter of the workers."""
    if cluster.scheduler == "ray":
        return request.python_of(cluster, host.python)
    return cluster.container.python if cluster.container else host.python


def _topmost(
    run_url: str, cluster: Cluster, shape: Shape, head: str, *, env: dict[str, str], host: HostFacts
) -> Process:
    """What starts torchrun on each node: the owner of this machine, or the agents of a scheduler's nodes."""
    if cluster.scheduler == "local":
        words = [f"--nnodes={shape.nnodes}", f"--nproc-per-node={shape.nproc}", f"--device={shape.device}"]
        argv = [*python_words(host.python), "-m", "launchyard.launcher.backends.local.owner", run_url, *words]
        return Process(role="owner", node_rank=0, argv=argv, env=env)
    argv_of = request.agent_argv if cluster.scheduler == "ray" else slurm_request.agent_argv
    argv = argv_of(
        cluster,
        python=host.python,
        run_url=run_url,
        attempt=ATTEMPT,
        nnodes=shape.nnodes,
        nproc=shape.nproc,
        device=shape.device,
        endpoint=head,
    )
    return Process(role="agent", node_rank=0, argv=argv, env=env)


def scheduler_text(
    cluster: Cluster,
    shape: Shape,
    *,
    run_id: str,
    run_url: str,
    env: dict[str, str],
    host: HostFacts,
    limit: str | None,
    after: str | None,
) -> str | None:
    """What the scheduler is sent; None where nothing is. `limit`: wall time; `after`: a job that has to end first."""
    if cluster.scheduler == "ray":
        return request.request_text(cluster, python=host.python, run_id=run_id, run_url=run_url, shape=shape, env=env)
    if cluster.scheduler != "slurm":
        return None
    folder = job_folder(run_url, host.logs)
    return slurm_request.sbatch_text(
        cluster,
        python=host.python,
        run_url=run_url,
        run_id=run_id,
        log=f"{folder.replace('%', '%%')}/job-%j.log",
        code=f"{folder}/code",
        nnodes=shape.nnodes,
        gpus=shape.gpus,
        time_limit=limit,
        after=after,
    )


def _marks(run_url: str, node_rank: int, device: str) -> dict[str, str]:
    """What the agent adds for torchrun and its workers."""
    env = {
        MARK_RUN: run_url,
        MARK_ATTEMPT: "0",
        MARK_NODE: str(node_rank),
        "LAUNCHYARD_SCRATCH": "{private folder}",
        "LAUNCHYARD_AGENT_PID": "{agent}",
        **SAFE_PATH,
    }
    return env if device == "cuda" else {**env, "CUDA_VISIBLE_DEVICES": ""}
