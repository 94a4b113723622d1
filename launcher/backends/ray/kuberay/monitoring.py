"""What watches runs on Kubernetes: `launch monitor` beside the cluster, and how the Prometheus operator finds it.

The workers of runs come and go on ports that nobody can name in a manifest, so Prometheus asks `launch monitor`.
"""

from __future__ import annotations

from collections.abc import Iterator

from launchyard.launcher.backends.ray.kuberay.options import Kubernetes
from launchyard.launcher.backends.ray.kuberay.pods import CONFIG_FOLDER, about_pods, around, plain_container
from launchyard.storage.damage import JsonObject

_PORT = 9465  # of launch monitor
_APP = "launchyard.io/monitor"


def objects(options: Kubernetes, cluster: str, *, config: str) -> Iterator[JsonObject]:
    name = f"{cluster}-monitor"
    address = f"{name}.{options.namespace}.svc:{_PORT}"  # Prometheus may be in another namespace
    yield _deployment(options, name, config)
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {_APP: name}, "ports": [{"name": "metrics", "port": _PORT, "targetPort": _PORT}]},
    }
    yield _scrape("launchyard", f"{name}-runs", {"httpSDConfigs": [_targets(address)]})
    yield _scrape("launchyard-monitor", name, {"staticConfigs": [{"targets": [address]}]})
    yield _rays_own(f"{cluster}-ray", cluster)


def _targets(address: str) -> JsonObject:
    return {"url": f"http://{address}/targets", "refreshInterval": "15s"}


def _deployment(options: Kubernetes, name: str, config: str) -> JsonObject:
    argv = ["launch", "monitor", "--cluster", f"{CONFIG_FOLDER}/cluster.yaml", "--host", "0.0.0.0"]  # noqa: S104
    argv.append(f"--port={_PORT}")
    container = plain_container("monitor", options, argv, {"cpu": "500m", "memory": "1Gi"})
    volumes, mounts = around(options)
    container["ports"] = [{"name": "metrics", "containerPort": _PORT}]
    container["volumeMounts"] = [{"name": "launchyard", "mountPath": CONFIG_FOLDER, "readOnly": True}, *mounts]
    spec = {**about_pods(options), "containers": [container]}
    spec["volumes"] = [{"name": "launchyard", "configMap": {"name": config}}, *volumes]
    labels = {_APP: name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def _scrape(job: str, name: str, found: JsonObject) -> JsonObject:
    """The name of the job matters: rules and dashboards use it."""
    return {
        "apiVersion": "monitoring.coreos.com/v1alpha1",
        "kind": "ScrapeConfig",
        "metadata": {"name": name},
        "spec": {"jobName": job, **found},
    }


def _rays_own(name: str, cluster: str) -> JsonObject:
    """Ray's own series, at the port that KubeRay names in each of its pods."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"ray.io/cluster": cluster}},
            "podMetricsEndpoints": [{"port": "metrics"}],
        },
    }
