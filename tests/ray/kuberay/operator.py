"""What KubeRay's operator makes of a RayCluster: the command line and the variables of each container.

The rules are those of ray-operator/controllers/ray/common/pod.go and job.go (KubeRay 1.4 to 1.6, read, in our words).
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from typing import Any

import yaml

GCS_PORT = "6379"
METRICS_PORT = "8080"
AGENT_PORT = "52365"
SHELL = ["/bin/bash", "-c", "--"]
_TAKE_A_BOOLEAN = ("log-color", "include-dashboard")


@dataclass(frozen=True)
class Pod:
    """One container as the kubelet would start it."""

    name: str
    argv: list[str]
    env: dict[str, str]
    secrets: list[str] = field(default_factory=list)  # whose keys become variables
    files: dict[str, dict[str, str]] = field(default_factory=dict)  # folder -> name -> text
    shared_memory: str = ""  # sizeLimit of what is mounted at /dev/shm
    grace_seconds: int = 30  # Kubernetes' own default

    @property
    def is_head(self) -> bool:
        return "--head" in self.argv[-1]


def documents(manifest: str) -> dict[str, dict[str, Any]]:
    """The objects of a manifest, by kind; ScrapeConfigs by kind and name."""
    found = {}
    for one in yaml.safe_load_all(manifest):
        if one is not None:
            several = one["kind"] == "ScrapeConfig"
            found[f"ScrapeConfig {one['metadata']['name']}" if several else one["kind"]] = one
    return found


def pods_of(manifest: str) -> list[Pod]:
    """The head's pod, and those of all workers."""
    found = documents(manifest)
    made = found.get("RayCluster") or found["RayJob"]
    spec = made["spec"].get("rayClusterSpec", made["spec"])
    service = f"{made['metadata']['name']}-head-svc.{made['metadata']['namespace']}.svc.cluster.local"
    configs = {found["ConfigMap"]["metadata"]["name"]: found["ConfigMap"]["data"]}
    pods = [_pod("head", spec["headGroupSpec"], head=True, service=service, configs=configs)]
    for group in spec["workerGroupSpecs"]:
        pods += [
            _pod(f"{group['groupName']}-{number}", group, head=False, service=service, configs=configs)
            for number in range(group["replicas"])
        ]
    return pods


def head_service(pod: Pod) -> str:
    """The name by which workers reach the head."""
    return pod.env["FQ_RAY_IP"]


def _pod(name: str, group: dict[str, Any], *, head: bool, service: str, configs: dict[str, Any]) -> Pod:
    spec = group["template"]["spec"]
    (container,) = spec["containers"]
    assert not container.get("command") and not container.get("args"), "which KubeRay would put before ray start"
    start = ray_start(group["rayStartParams"], container["resources"], head=head, service=service)
    address = "127.0.0.1" if head else service
    env = {one["name"]: one["value"] for one in container.get("env", [])}
    env |= {"RAY_PORT": GCS_PORT, "RAY_ADDRESS": f"{address}:{GCS_PORT}", "KUBERAY_GEN_RAY_START_CMD": start}
    env |= {"RAY_USAGE_STATS_KUBERAY_IN_USE": "1", "FQ_RAY_IP": service}
    volumes = {one["name"]: one for one in spec["volumes"]}
    mounted = {one["mountPath"]: volumes[one["name"]] for one in container["volumeMounts"]}
    files = {
        folder: configs[volume["configMap"]["name"]] for folder, volume in mounted.items() if "configMap" in volume
    }
    return Pod(
        name=name,
        argv=[*SHELL, f"ulimit -n 65536; {start}"],
        env=env,
        secrets=[one["secretRef"]["name"] for one in container.get("envFrom", [])],
        files=files,
        shared_memory=mounted["/dev/shm"]["emptyDir"]["sizeLimit"],
        grace_seconds=spec.get("terminationGracePeriodSeconds", 30),
    )


def ray_start(params: dict[str, str], resources: dict[str, Any], *, head: bool, service: str) -> str:
    """`ray start` with what is missing in its parameters: from the limits, or what the operator always says."""
    said = {"metrics-export-port": METRICS_PORT, "dashboard-agent-listen-port": AGENT_PORT}
    said |= {"dashboard-host": "0.0.0.0"} if head else {"address": f"{service}:{GCS_PORT}"}
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    if cpus := limits.get("cpu") or requests.get("cpu"):
        said["num-cpus"] = cpus
    if "memory" in limits:
        said["memory"] = str(bytes_in(limits["memory"]))
    gpus = [amount for name, amount in sorted(limits.items()) if name.endswith("gpu")]
    said |= {"num-gpus": gpus[0]} if gpus else {}
    words = [_flag(name, value) for name, value in sorted({**said, **params, "block": "true"}.items())]
    return " ".join(["ray start", *(["--head"] if head else []), *filter(None, words)])


def _flag(name: str, value: str) -> str:
    """A value of true is a bare flag, one of false none at all."""
    if value.lower() in ("true", "false") and name not in _TAKE_A_BOOLEAN:
        return f"--{name}" if value.lower() == "true" else ""
    return f"--{name}={value}"


def bytes_in(quantity: str) -> int:
    """Of an amount of memory: 8Gi, 900G, 1048576."""
    units = {
        "Ki": 1 << 10,
        "Mi": 1 << 20,
        "Gi": 1 << 30,
        "Ti": 1 << 40,
        "k": 10**3,
        "M": 10**6,
        "G": 10**9,
        "T": 10**12,
    }
    for unit, size in units.items():
        if quantity.endswith(unit):
            return int(quantity.removesuffix(unit)) * size
    return int(quantity)


def submit_script(manifest: str, job_id: str, address: str) -> str:
    """What the submitter of a RayJob hands to its shell; the entrypoint stands there as it is in the manifest."""
    spec = documents(manifest)["RayJob"]["spec"]
    at = f"--address {address}"
    known = f"ray job status {at} {job_id} >/dev/null 2>&1"
    more = ""
    if runtime_env := spec.get("runtimeEnvYAML"):
        more = f" --runtime-env-json {shlex.quote(json.dumps(yaml.safe_load(runtime_env)))}"
    submit = f"ray job submit {at} --no-wait{more} --submission-id {job_id} -- {spec['entrypoint'].strip()} ;"
    return f"if ! {known} ; then {submit} fi ; ray job logs {at} --follow {job_id}"
