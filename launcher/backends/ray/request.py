"""The very request that Ray Jobs is sent: a pure function of a plan's facts and the cluster. Asks no Ray.

Its entrypoint becomes the owner of the run inside the cluster (launcher/backends/ray/owner.py). Ray hands it to a
shell, so it is quoted as a whole, and what is drawn at the submission stands at its end.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from launchyard.host.processes import SAFE_PATH, python_words

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster
    from launchyard.launcher.backends.ray.options import Ray
    from launchyard.launcher.plan.processes import Shape


JOB, CODE = "{job}", "{code}"  # filled in when it is sent
QUIET = {"RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"}  # what agents say is in the job's log, all of it, and plain
STOP_SECONDS = 600  # that `ray job stop` leaves a run to save in; Ray's own default is 3


def request_text(cluster: Cluster, *, python: str, run_id: str, run_url: str, shape: Shape, env: dict[str, str]) -> str:
    """As JSON: `place`, how Ray is reached; `bundle`, what each node is asked for; `request`, for POST /api/jobs/."""
    ray, bundle = options_of(cluster), bundle_of(cluster, shape)
    owner = [*python_words(python_of(cluster, python)), "-u", "-m", "launchyard.launcher.backends.ray.owner", run_url]
    owner += [f"--bundle={name}={amount}" for name, amount in bundle.items()]
    owner += [f"--sizes={','.join(map(str, shape.sizes))}", f"--wait-seconds={ray.wait_seconds:g}", f"--job-id={JOB}"]
    runtime_env = {
        **ray.runtime_env,
        "working_dir": CODE,
        "env_vars": {**env, **SAFE_PATH, **QUIET, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
    }
    request = {
        "entrypoint": f"exec {shlex.join(owner)}",
        "runtime_env": runtime_env,
        "metadata": {"launchyard_run": run_id},
    }
    place = ray.model_dump(mode="json", exclude_defaults=True)
    return json.dumps({"place": place, "bundle": bundle, "nodes": shape.nnodes, "request": request}, indent=1)


def options_of(cluster: Cluster) -> Ray:
    from launchyard.launcher.backends.ray.options import Ray

    return cluster.ray or Ray()


def python_of(cluster: Cluster, here: str) -> str:
    """The interpreter of the nodes; `here`: that of the launcher, which a Ray of this machine shares."""
    ray = options_of(cluster)
    return ray.python or ("python" if ray.address else here)


def bundle_of(cluster: Cluster, shape: Shape) -> dict[str, float]:
    """What one node must give, by Ray's names; memory in bytes."""
    from launchyard.launcher.format import bytes_of

    found: dict[str, float] = {"CPU": cluster.node.cpus or shape.nproc}
    if shape.gpus:
        found["GPU"] = shape.gpus
    if cluster.node.memory is not None:
        found["memory"] = bytes_of(cluster.node.memory)
    return found | options_of(cluster).resources


def agent_argv(
    cluster: Cluster, *, python: str, run_url: str, attempt: Any, nnodes: int, nproc: int, device: str, endpoint: str
) -> list[str]:
    """The agent of a node; its number is added there. `attempt` and `endpoint` (host:port) are drawn anew each time."""
    words = [
        *python_words(python_of(cluster, python)),
        "-u",
        "-m",
        "launchyard.launcher.agent.node",
        run_url,
        f"--attempt={attempt}",
    ]
    words += [f"--nnodes={nnodes}", f"--nproc-per-node={nproc}", f"--device={device}", f"--rdzv-endpoint={endpoint}"]
    return words


def filled(request: dict[str, Any], *, job_id: str, code: str | None) -> dict[str, Any]:
    """The request with what is drawn at the submission. code: URI of the code; None: nodes have it installed."""
    runtime_env = {key: value for key, value in request["runtime_env"].items() if key != "working_dir"}
    if code is not None:
        runtime_env["working_dir"] = code
    entrypoint = str(request["entrypoint"]).removesuffix(shlex.quote(f"--job-id={JOB}")) + f"--job-id={job_id}"
    return {**request, "entrypoint": entrypoint, "runtime_env": runtime_env, "submission_id": job_id}


def errand(request: dict[str, Any], *, argv: list[str], code: str | None, node_id: str | None = None) -> dict[str, Any]:
    """A short job that runs `argv` on a node, any or a certain one, with a run's environment; see ray_errand.py."""
    python = shlex.split(str(request["entrypoint"]))[1]
    words = [
        *python_words(python),
        "-m",
        "launchyard.launcher.backends.ray.run_on_node",
        *([f"--node-id={node_id}"] if node_id else []),
        "--",
        *argv,
    ]
    runtime_env = {key: value for key, value in request["runtime_env"].items() if key != "working_dir"}
    if code is not None:
        runtime_env["working_dir"] = code
    return {"entrypoint": f"exec {shlex.join(words)}", "runtime_env": runtime_env, "metadata": request["metadata"]}
