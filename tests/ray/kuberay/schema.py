"""The part of Kubernetes' and KubeRay's schemas that our manifests may use: names and types, nothing else is allowed.

Facts of interfaces, written down by hand: RayCluster and RayJob of `ray.io/v1` as the CRDs of KubeRay 1.4 to 1.6 have
them (github.com/ray-project/kuberay, Apache-2.0), PodTemplateSpec, Deployment, Service and ConfigMap of Kubernetes
1.32, PodMonitor and ScrapeConfig of the Prometheus operator 0.80. The real judge of a manifest is a server:
`kubectl apply --dry-run=server`. With KUBERAY_CRDS=FOLDER (its config/crd/bases) the tests ask the CRDs themselves.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
YES: Schema = {"type": "boolean"}
AMOUNT: Schema = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGTPE]i|[kMGTPE])?$"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def many(item: Schema, at_least: int = 1) -> Schema:
    return {"type": "array", "items": item, "minItems": at_least}


def a(required: str = "", **keys: Schema) -> Schema:
    """An object with these keys and no others."""
    return {"type": "object", "properties": keys, "required": required.split(), "additionalProperties": False}


def one_of(*words: str) -> Schema:
    return {"enum": list(words)}


NAMED = a("name", name=TEXT)
METADATA = a("name namespace", name={"type": "string", "pattern": r"^[a-z]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 63},
             namespace=TEXT, labels=TEXTS)  # fmt: skip
RESOURCES = a(limits={"type": "object", "additionalProperties": AMOUNT},
              requests={"type": "object", "additionalProperties": AMOUNT})  # fmt: skip
CONTAINER = a(
    "name image",
    name={"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}, image=TEXT, command=many(TEXT),
    env=many(a("name value", name=TEXT, value=TEXT)), envFrom=many(a("secretRef", secretRef=NAMED)),
    ports=many(a("containerPort", containerPort=WHOLE, name={"type": "string", "maxLength": 15})),
    resources=RESOURCES, volumeMounts=many(a("mountPath name", mountPath=TEXT, name=TEXT, readOnly=YES)),
)  # fmt: skip
VOLUME = {
    **a("name", name=TEXT, emptyDir=a(medium=one_of("Memory"), sizeLimit=AMOUNT), configMap=NAMED,
        secret=a("secretName", secretName=TEXT), persistentVolumeClaim=a("claimName", claimName=TEXT)),
    "minProperties": 2, "maxProperties": 2,
}  # fmt: skip
TOLERATION = a(key=TEXT, operator=one_of("Exists", "Equal"), value=TEXT,
               effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"))  # fmt: skip
POD = a(
    "containers",
    containers=many(CONTAINER), volumes=many(VOLUME), serviceAccountName=TEXT, imagePullSecrets=many(NAMED),
    nodeSelector=TEXTS, tolerations=many(TOLERATION), terminationGracePeriodSeconds=WHOLE,
)  # fmt: skip
TEMPLATE = a("spec", metadata=a(labels=TEXTS), spec=POD)
HEAD = a("template rayStartParams", rayStartParams=TEXTS, template=TEMPLATE)
GROUP = a(
    "groupName minReplicas maxReplicas template rayStartParams", groupName=TEXT, replicas=WHOLE, minReplicas=WHOLE,
    maxReplicas=WHOLE, rayStartParams=TEXTS, template=TEMPLATE,
)  # fmt: skip
RAY_CLUSTER = a("headGroupSpec", headGroupSpec=HEAD, workerGroupSpecs=many(GROUP))
RAY_JOB = a(
    "rayClusterSpec entrypoint", entrypoint=TEXT, shutdownAfterJobFinishes=YES, ttlSecondsAfterFinished=WHOLE,
    backoffLimit=WHOLE, rayClusterSpec=RAY_CLUSTER,
)  # fmt: skip
DEPLOYMENT = a("selector template", replicas=WHOLE, selector=a("matchLabels", matchLabels=TEXTS), template=TEMPLATE)
SERVICE = a("ports", selector=TEXTS, ports=many(a("port", name=TEXT, port=WHOLE, targetPort=WHOLE)))
DURATION: Schema = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
SCRAPE = {
    **a(jobName=TEXT, httpSDConfigs=many(a("url", url=TEXT, refreshInterval=DURATION)),
        staticConfigs=many(a("targets", targets=many(TEXT)))),
    "minProperties": 2,
}  # fmt: skip
POD_MONITOR = a(
    "selector podMetricsEndpoints", selector=a("matchLabels", matchLabels=TEXTS),
    podMetricsEndpoints=many(a("port", port=TEXT)),
)  # fmt: skip
SPECS = {
    ("ray.io/v1", "RayCluster"): RAY_CLUSTER,
    ("ray.io/v1", "RayJob"): RAY_JOB,
    ("apps/v1", "Deployment"): DEPLOYMENT,
    ("v1", "Service"): SERVICE,
    ("monitoring.coreos.com/v1alpha1", "ScrapeConfig"): SCRAPE,
    ("monitoring.coreos.com/v1", "PodMonitor"): POD_MONITOR,
}
LONGEST = {"RayCluster": 53, "RayJob": 47}  # what KubeRay takes of a name


def schema_of(api: str, kind: str) -> Schema:
    """Of a whole object. KeyError for one that no manifest of ours may have."""
    around: dict[str, Schema] = {"apiVersion": {"const": api}, "kind": {"const": kind}, "metadata": METADATA}
    if kind == "ConfigMap":
        return a("apiVersion kind metadata data", **around, data=TEXTS)
    return a("apiVersion kind metadata spec", **around, spec=SPECS[api, kind])


def of_the_crds() -> dict[str, Schema]:
    """By kind, what KUBERAY_CRDS holds; its unknown keys are refused, which a server would drop in silence."""
    folder = os.environ.get("KUBERAY_CRDS")
    found = {}
    for path in sorted(Path(folder).glob("ray.io_*.yaml")) if folder else ():
        spec = yaml.safe_load(path.read_text())["spec"]
        (version,) = [one for one in spec["versions"] if one["name"] == "v1"]
        found[spec["names"]["kind"]] = _closed(version["schema"]["openAPIV3Schema"])
    return found


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _closed(value) for key, value in schema.items()}
    if "properties" in inner and isinstance(inner["properties"], dict) and "additionalProperties" not in inner:
        inner["additionalProperties"] = False
    return inner
