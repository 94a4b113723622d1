"""A launch as objects for KubeRay: a RayCluster to launch into, or a RayJob that is the run. A pure function.

`kuberay`: the cluster and what watches it; `kuberay-job`: one run with a cluster of its own. Neither holds a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import yaml

from launchyard.errors import UserError
from launchyard.host.processes import python_argv
from launchyard.launcher.backends.ray.kuberay import monitoring, pods
from launchyard.launcher.backends.ray.kuberay.options import Kubernetes
from launchyard.launcher.backends.ray.request import RayRequest, options_of, worker_python
from launchyard.run import layout
from launchyard.storage.damage import JsonObject

if TYPE_CHECKING:
    from launchyard.launcher.backends.base import Planned
    from launchyard.launcher.backends.cluster import Cluster
    from launchyard.launcher.backends.manifest import Launch

JOB = "kuberay-job"
API = "ray.io/v1"
_LONGEST = 47  # name of a RayJob, to which KubeRay appends
_HERE = "http://127.0.0.1:8265"  # the dashboard as the head itself sees it
_ENTRYPOINT = "launchyard.launcher.backends.ray.kuberay.entrypoint"
_PLAIN = re.compile(r"[\w/:.@=+-]+")  # two shells see the entrypoint of a RayJob


class _Form(Protocol):
    def __call__(
        self, options: Kubernetes, cluster: Cluster, plan: Planned, launch: Launch, /
    ) -> Iterator[JsonObject]: ...


class _Plain(yaml.SafeDumper):
    """Texts of several lines as such, and nothing by reference."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Plain.add_representer(str, _Plain.represent_str)


def objects_text(form: str, cluster: Cluster, plan: Planned, launch: Launch) -> str:
    options = options_of(cluster).kubernetes
    if options is None:
        where = f"ray.kubernetes: cluster {cluster.name} has no such section"
        raise UserError(where, hint="docs/guides/kuberay.md shows one; an image is all that it needs")
    _check_seen(options, cluster, [launch.run_url, *(launch.folders if form == JOB else ())])
    make: _Form = _job if form == JOB else _cluster
    objects = [_of_user(options, one) for one in make(options, cluster, plan, launch)]
    head = "\n".join(f"# {line}".rstrip() for line in _next_commands(form, objects, options))
    return f"{head}\n---\n{yaml.dump_all(objects, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=110)}"


def _next_commands(form: str, objects: list[JsonObject], options: Kubernetes) -> list[str]:
    name = objects[-1 if form == JOB else 1]["metadata"]["name"]
    where = f" --namespace {options.namespace}"
    if form == JOB:
        return [f"kubectl apply{where} -f FILE", f"kubectl get rayjob{where} {name}"]
    forward = f"kubectl port-forward{where} service/{name}-head-svc 8265"
    return [f"kubectl apply{where} -f FILE", f"{forward}    # then launch with ray.address: {_HERE}"]


# -- objects ---------------------------------------------------------------------------------------------------------
def _cluster(options: Kubernetes, cluster: Cluster, plan: Planned, launch: Launch) -> Iterator[JsonObject]:
    name = object_name(cluster.name)
    config = f"{name}-launchyard"
    yield _config(config, {"cluster.yaml": _cluster_file(cluster)})
    yield {"apiVersion": API, "kind": "RayCluster", "metadata": {"name": name}, "spec": _spec(options, plan, config)}
    yield from monitoring.objects(options, name, config=config)


def _job(options: Kubernetes, cluster: Cluster, plan: Planned, launch: Launch) -> Iterator[JsonObject]:
    """The run is launched by the job's entrypoint on the head, with the recipe that the manifest holds."""
    if launch.own_code:
        hint = "--output kuberay, and launch into that cluster: then the file goes along"
        raise UserError(f"--output {JOB}: the recipe names a file of your own code, which no pod has", hint=hint)
    name = object_name(plan.run_id)
    config = f"{name}-launchyard"
    python = worker_python(cluster, "python")
    recipe = f"{pods.CONFIG_FOLDER}/{layout.RECIPE}"
    words = [*python_argv(python), "-m", _ENTRYPOINT, recipe, f"{pods.CONFIG_FOLDER}/cluster.yaml", launch.run_url]
    if odd := [word for word in words if not _PLAIN.fullmatch(word)]:
        raise UserError(
            f"--output {JOB}: {odd[0]}: KubeRay hands it to shells, so plain letters only: [A-Za-z0-9_/:.@=+-]"
        )
    yield _config(config, {"cluster.yaml": _cluster_file(cluster), layout.RECIPE: launch.recipe})
    spec = {
        "entrypoint": " ".join(words),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 60,
        "backoffLimit": options.retries,  # each with a new cluster, on which the run goes on
        "rayClusterSpec": _spec(options, plan, config),
    }
    yield {"apiVersion": API, "kind": "RayJob", "metadata": {"name": name}, "spec": spec}


def _spec(options: Kubernetes, plan: Planned, config: str) -> JsonObject:
    request = plan.request
    assert isinstance(request, RayRequest)
    workers = plan.shape.nproc_per_node
    head = pods.head_group(options, owner=_owner(request), config=config)
    nodes = pods.worker_group(options, bundle=request.bundle, nodes=request.nodes, workers=workers)
    return {"headGroupSpec": head, "workerGroupSpecs": [nodes]}


def _owner(request: RayRequest) -> dict[str, float]:
    """Resources of its own that the head must have: the owner's."""
    owner: dict[str, float] = request.place.get("owner", {})
    if taken := owner.keys() & {"CPU", "GPU", "memory"}:
        raise UserError(f"ray.owner: {', '.join(taken)}: the head of this cluster gives none; leave ray.owner out")
    return owner


def _config(name: str, files: dict[str, str]) -> JsonObject:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": files}


def _cluster_file(cluster: Cluster) -> str:
    """The cluster as its own head sees it."""
    facts = cluster.model_dump(mode="json", exclude_defaults=True)
    kept = {"owner", "python", "resources", "runtime_env", "wait_seconds"}
    facts["ray"] = {"address": _HERE, **{key: value for key, value in facts["ray"].items() if key in kept}}
    return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)


def _of_user(options: Kubernetes, made: JsonObject) -> JsonObject:
    """With the namespace and the labels that the user wants."""
    labels = {"labels": options.labels} if options.labels else {}
    return {**made, "metadata": {**made["metadata"], "namespace": options.namespace, **labels}}


def object_name(name: str) -> str:
    """The nearest name that KubeRay takes: small letters, digits and hyphens, a letter first, not too long."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"r-{plain}")[:_LONGEST].rstrip("-")


# -- what pods see ---------------------------------------------------------------------------------------------------
def _check_seen(options: Kubernetes, cluster: Cluster, places: list[str]) -> None:
    if unseen := [place for place in places if not options.sees(place)]:
        folders = "a folder of ray.kubernetes.claims"
        raise UserError(f"{unseen[0]}: a folder of this machine, which no pod sees", hint=f"take s3://…, or {folders}")
    storage = cluster.storage
    if storage.credentials_file is not None:
        folder = storage.credentials_file.rpartition("/")[0]
        if folder not in options.secret_folders:
            raise UserError(
                f"storage.credentials_file: {storage.credentials_file} is in no folder of the pods",
                hint=f"ray.kubernetes.secret_folders: {{{folder}: NAME-OF-A-SECRET}}",
            )
    elif storage.profile is not None:
        raise UserError(
            f"storage.profile: {storage.profile}: pods have no ~/.aws",
            hint="leave it out, export AWS_PROFILE where you launch, and name a Secret: ray.kubernetes.secrets",
        )
