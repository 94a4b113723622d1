"""The very request that Ray Jobs is sent: a pure function of a plan's facts and the cluster. Asks no Ray.

Its entrypoint becomes the owner of the run inside the cluster (launcher/backends/ray/owner.py). Ray hands it to a
shell, so all of it is quoted, and values drawn at the submission stand at its end.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from pydantic import Field

from launchyard.host.processes import SAFE_PATH, python_argv
from launchyard.launcher.backends.request import Ask, Request

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster
    from launchyard.launcher.backends.ray.options import Ray


AGENT = "launchyard.launcher.backends.ray.agent"
JOB = "{job}"  # filled in when it is sent, as CODE is
CODE = "{code}"
QUIET = {"RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"}  # the output of agents is in the job's log, complete and plain
STOP_SECONDS = 600  # that `ray job stop` leaves a run to save in; Ray's own default is 3


class RayRequest(Request):
    """The request to Ray Jobs, and values that others need of it."""

    place: dict[str, Any] = Field(description="How Ray is reached.")
    bundle: dict[str, float] = Field(description="What each node is asked for, by Ray's names.")
    nodes: int
    job: dict[str, Any] = Field(description="For POST /api/jobs/, with marks for what is drawn when it is sent.")


def make_request(cluster: Cluster, ask: Ask) -> RayRequest:
    ray = options_of(cluster)
    bundle = bundle_of(cluster, ask)
    python = worker_python(cluster, ask.python)
    owner = [*python_argv(python), "-u", "-m", "launchyard.launcher.backends.ray.owner", ask.run_url]
    owner += [f"--bundle={name}={amount}" for name, amount in bundle.items()]
    owner += [f"--sizes={','.join(map(str, ask.sizes))}", f"--wait-seconds={ray.wait_seconds:g}", f"--job-id={JOB}"]
    runtime_env = {
        **ray.runtime_env,
        "working_dir": CODE,
        "env_vars": {**ask.environment, **SAFE_PATH, **QUIET, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
    }
    job = {
        "entrypoint": f"exec {shlex.join(owner)}",
        "runtime_env": runtime_env,
        "metadata": {"launchyard_run": ask.run_id},
        **_owner_resources(ray.owner),
    }
    place = ray.model_dump(mode="json", exclude_defaults=True, exclude={"kubernetes"})
    nodes = ask.shape.nnodes
    text = json.dumps({"place": place, "bundle": bundle, "nodes": nodes, "request": job}, indent=1)
    return RayRequest(text=text, place=place, bundle=bundle, nodes=nodes, job=job)


def _owner_resources(amounts: dict[str, float]) -> dict[str, Any]:
    """What Ray Jobs is asked for the entrypoint: it then runs on a node that has that, else on the head."""
    names = {"CPU": "entrypoint_num_cpus", "GPU": "entrypoint_num_gpus", "memory": "entrypoint_memory"}
    found: dict[str, Any] = {names[name]: amount for name, amount in amounts.items() if name in names}
    if others := {name: amount for name, amount in amounts.items() if name not in names}:
        found["entrypoint_resources"] = others
    return found


def stored_request(plan: dict[str, Any]) -> RayRequest:
    """That of a stored plan. Plans of version 0.1 have only its text."""
    if "request" in plan:
        return RayRequest.model_validate(plan["request"])
    stored = json.loads(plan["script"])
    return RayRequest(text=plan["script"], job=stored.pop("request"), **stored)


def options_of(cluster: Cluster) -> Ray:
    found: Ray = cluster.section("ray")
    return found


def worker_python(cluster: Cluster, here: str) -> str:
    """The interpreter of the nodes; `here`: that of the launcher, which a Ray of this machine shares."""
    ray = options_of(cluster)
    return ray.python or ("python" if ray.address else here)


def bundle_of(cluster: Cluster, ask: Ask) -> dict[str, float]:
    """The resources that one node must give, by Ray's names; memory in bytes."""
    from launchyard.launcher.format import bytes_of

    found: dict[str, float] = {"CPU": cluster.node.cpus or ask.shape.nproc_per_node}
    if ask.gpus:
        found["GPU"] = ask.gpus
    if cluster.node.memory is not None:
        found["memory"] = bytes_of(cluster.node.memory)
    return found | options_of(cluster).resources


def agent_argv(cluster: Cluster, ask: Ask) -> list[str]:
    """The agent of a node, which stays: what an attempt draws anew it hears from the owner."""
    return [worker_python(cluster, ask.python), *agent_words(ask.run_url)]


def agent_words(run_url: str) -> list[str]:
    """Its arguments; which node it is, the owner adds."""
    return [*python_argv("python")[1:], "-u", "-m", AGENT, run_url]


def filled(request: dict[str, Any], *, job_id: str, code: str | None) -> dict[str, Any]:
    """The request with the values drawn at the submission. code: URI of the code; None: nodes have it installed."""
    runtime_env = {key: value for key, value in request["runtime_env"].items() if key != "working_dir"}
    if code is not None:
        runtime_env["working_dir"] = code
    entrypoint = str(request["entrypoint"]).removesuffix(shlex.quote(f"--job-id={JOB}")) + f"--job-id={job_id}"
    return {**request, "entrypoint": entrypoint, "runtime_env": runtime_env, "submission_id": job_id}


def short_job(
    request: dict[str, Any], *, argv: list[str], code: str | None, node_id: str | None = None
) -> dict[str, Any]:
    """A short job that runs `argv` on a node, any or a certain one, with a run's environment; see run_on_node.py."""
    python = shlex.split(str(request["entrypoint"]))[1]
    command = [
        *python_argv(python),
        "-m",
        "launchyard.launcher.backends.ray.run_on_node",
        *([f"--node-id={node_id}"] if node_id else []),
        "--",
        *argv,
    ]
    runtime_env = {key: value for key, value in request["runtime_env"].items() if key != "working_dir"}
    if code is not None:
        runtime_env["working_dir"] = code
    return {"entrypoint": f"exec {shlex.join(command)}", "runtime_env": runtime_env, "metadata": request["metadata"]}
