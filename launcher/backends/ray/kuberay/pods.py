"""The pods of a Ray on Kubernetes as KubeRay takes them: a head that takes no work, and one worker pod a node of a run.

KubeRay writes the command of each container itself, from `rayStartParams` and the container's limits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from launchyard.errors import UserError
from launchyard.launcher.backends.ray.kuberay.options import Kubernetes
from launchyard.storage.damage import JsonObject

CONFIG_FOLDER = "/etc/launchyard"  # the recipe and the cluster file in a pod
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"  # Ray's own: how long a node that is ended drains before
HURRY_SECONDS = 30  # after the drain, for Ray to end its processes
_OBJECTS = 256 << 20  # of shared memory for Ray's objects, of which a run uses none
_COUNTED = ("CPU", "GPU", "memory")
_FOUND_BY_RAY = ("accelerator_type:", "node:")


def head_group(options: Kubernetes, *, owner: Mapping[str, float], config: str) -> JsonObject:
    """No CPUs and GPUs: it has the owners of runs, and dies of none of their workers."""
    amounts = {"cpu": str(options.head_cpus), "memory": quantity(options.head_memory)}
    container = _container("ray-head", options, amounts)
    container["ports"] = [
        {"containerPort": 6379, "name": "gcs-server"},
        {"containerPort": 8265, "name": "dashboard"},
        {"containerPort": 10001, "name": "client"},
    ]
    container["env"] = [{"name": DRAIN, "value": "0"}]  # nothing can leave it
    params = {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0", **_resources(owner)}  # noqa: S104
    volumes = [{"name": "launchyard", "configMap": {"name": config}}]
    mounts = [{"name": "launchyard", "mountPath": CONFIG_FOLDER, "readOnly": True}]
    return {
        "rayStartParams": {**params, "object-store-memory": str(_OBJECTS)},
        "template": _template(options, container, volumes=volumes, mounts=mounts, shared="1Gi"),
    }


def worker_group(options: Kubernetes, *, bundle: Mapping[str, float], nodes: int, workers: int) -> JsonObject:
    """A pod for each node of the run, which gives the run's whole bundle."""
    amounts = {"cpu": f"{bundle['CPU']:g}"}
    if "memory" in bundle:
        amounts["memory"] = str(int(bundle["memory"]))
    if "GPU" in bundle:
        amounts[options.gpu] = f"{bundle['GPU']:g}"
    container = _container("ray-worker", options, amounts | options.limits)
    container["env"] = [{"name": DRAIN, "value": str(options.grace_seconds)}]
    shared = quantity(options.shared_memory) if options.shared_memory else f"{1 + workers}Gi"
    template = _template(options, container, shared=shared)
    template["spec"]["terminationGracePeriodSeconds"] = options.grace_seconds + HURRY_SECONDS
    if options.node_selector:
        template["spec"]["nodeSelector"] = options.node_selector
    if options.tolerations:
        template["spec"]["tolerations"] = [one.model_dump(exclude_none=True) for one in options.tolerations]
    return {
        "groupName": "nodes",
        "replicas": nodes,
        "minReplicas": nodes,
        "maxReplicas": nodes,
        "rayStartParams": {**_resources(bundle), "object-store-memory": str(_OBJECTS)},
        "template": template,
    }


def quantity(size: str) -> str:
    """64 GB -> 64G, as Kubernetes writes it."""
    text = size.replace(" ", "").removesuffix("B")
    return f"{text[:-1]}k" if text.endswith("K") else text


def plain_container(name: str, options: Kubernetes, argv: list[str], amounts: Mapping[str, str]) -> JsonObject:
    """Of a program of ours that is no node of Ray."""
    return {**_container(name, options, amounts), "command": argv}


def around(options: Kubernetes) -> tuple[list[JsonObject], list[JsonObject]]:
    """The volumes of every pod, and where they are mounted."""
    volumes = []
    mounts = []
    for number, (folder, name) in enumerate(options.secret_folders.items()):
        volumes.append({"name": f"secret-{number}", "secret": {"secretName": name}})
        mounts.append({"name": f"secret-{number}", "mountPath": folder, "readOnly": True})
    for number, (folder, name) in enumerate(options.claims.items()):
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": name}})
        mounts.append({"name": f"claim-{number}", "mountPath": folder})
    return volumes, mounts


def about_pods(options: Kubernetes) -> JsonObject:
    """What every pod says of itself."""
    found: JsonObject = {}
    if options.service_account is not None:
        found["serviceAccountName"] = options.service_account
    if options.pull_secrets:
        found["imagePullSecrets"] = [{"name": name} for name in options.pull_secrets]
    return found


def _container(name: str, options: Kubernetes, amounts: Mapping[str, str]) -> JsonObject:
    """Requests and limits are the same: nothing of a run may be taken because another pod wants more."""
    found: JsonObject = {"name": name, "image": options.image}
    if options.secrets:
        found["envFrom"] = [{"secretRef": {"name": secret}} for secret in options.secrets]
    return {**found, "resources": {"limits": dict(amounts), "requests": dict(amounts)}}


def _template(
    options: Kubernetes,
    container: JsonObject,
    *,
    shared: str,
    volumes: Sequence[JsonObject] = (),
    mounts: Sequence[JsonObject] = (),
) -> JsonObject:
    theirs, where = around(options)
    memory = {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": shared}}
    mounted = [{"name": "shared-memory", "mountPath": "/dev/shm"}, *mounts, *where]  # noqa: S108
    spec = {**about_pods(options), "containers": [{**container, "volumeMounts": mounted}]}
    return {"spec": {**spec, "volumes": [memory, *volumes, *theirs]}}


def _resources(amounts: Mapping[str, float]) -> dict[str, str]:
    """Resources of the user's own, in quotes for the shell that KubeRay hands the command to."""
    own = {name: amount for name, amount in amounts.items() if name not in _COUNTED}
    named = {name: amount for name, amount in own.items() if not name.startswith(_FOUND_BY_RAY)}
    if any("'" in name for name in named):
        raise UserError(f"ray.resources: {', '.join(named)}: a name with a quote cannot be given to KubeRay")
    return {"resources": f"'{json.dumps(named)}'"} if named else {}
