"""What `--output kuberay` prints: valid by schema, what the plan asks, no secret; and what KubeRay makes of it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launchyard.errors import UserError
from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.backends.manifest import Launch, load_manifests
from launchyard.launcher.backends.ray.kuberay.pods import quantity
from launchyard.launcher.backends.ray.manifest import object_name, objects_text
from launchyard.launcher.format import bytes_of
from tests.ray.kuberay.operator import bytes_in, documents, pods_of, submit_script
from tests.ray.kuberay.schema import LONGEST, of_the_crds, schema_of
from tests.ray.test_request import plan_of
from tests.support.shell import Shell

PODS: dict[str, Any] = {"image": "registry/launchyard:ray", "secrets": ["store-keys"]}
SITE: dict[str, Any] = {
    "name": "site", "scheduler": "ray", "storage": "s3://bucket/runs",
    "ray": {"address": "http://x", "kubernetes": PODS},
}  # fmt: skip
RUN = "s3://bucket/runs/small-ab12"
LAUNCH = Launch(run_url=RUN, recipe="name: small\n", folders=["s3://bucket/t"], own_code=False)
EVERYTHING = {
    **PODS, "namespace": "training", "labels": {"release": "prometheus"}, "service_account": "trainer",
    "secret_folders": {"/var/keys": "aws-file"}, "claims": {"/data": "corpus"}, "pull_secrets": ["registry"],
    "node_selector": {"pool": "h100"}, "tolerations": [{"key": "gpu"}, {"key": "x", "operator": "Equal", "value": "y"}],
    "limits": {"rdma/ib": "1"}, "shared_memory": "64GiB", "head_cpus": 4, "head_memory": "16 GB", "grace_seconds": 300,
}  # fmt: skip
GPUS = {
    **SITE, "node": {"gpus": 8, "cpus": 96, "memory": "900GB"},
    "storage": {"url": "s3://bucket/runs", "credentials_file": "/var/keys/credentials"},
    "environment": {"NCCL_SOCKET_IFNAME": "ib0"},
    "ray": {"kubernetes": EVERYTHING, "owner": {"login": 0.5}, "resources": {"fast": 2, "accelerator_type:H1": 0.1}},
}  # fmt: skip
CASES = {"plain": (SITE, {}), "everything": (GPUS, {"train__device": "auto", "resources__nodes": 4})}
FORMS = ("kuberay", "kuberay-job")


def printed(form: str, site: dict[str, Any] = SITE, launch: Launch = LAUNCH, **changes: Any) -> str:
    return objects_text(form, Cluster.model_validate(site), plan_of(site, **changes), launch)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_every_object_is_valid(case: str, form: str) -> None:
    site, changes = CASES[case]
    crds = of_the_crds()
    objects = list(filter(None, yaml.safe_load_all(printed(form, site, **changes))))
    for one in objects:
        jsonschema.validate(one, schema_of(one["apiVersion"], one["kind"]), cls=jsonschema.Draft202012Validator)
        if one["kind"] in crds:
            jsonschema.validate(one, crds[one["kind"]], cls=jsonschema.Draft202012Validator)
        assert len(one["metadata"]["name"]) <= LONGEST.get(one["kind"], 63)
    assert len({(one["kind"], one["metadata"]["name"]) for one in objects}) == len(objects)


def test_the_schema_refuses_what_is_not_kuberays() -> None:
    """A key that is misspelt, a number where KubeRay wants text, a volume of two kinds."""
    found = documents(printed("kuberay"))["RayCluster"]
    group = found["spec"]["workerGroupSpecs"][0]
    wrong: list[Any] = [
        {**found, "spec": {**found["spec"], "workerGroups": []}},
        {**found, "spec": {**found["spec"], "workerGroupSpecs": [{**group, "rayStartParams": {"num-cpus": 1}}]}},
        {**found, "spec": {**found["spec"], "workerGroupSpecs": [{**group, "replicas": "2"}]}},
    ]
    for one in wrong:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(one, schema_of("ray.io/v1", "RayCluster"))


def test_pods_give_what_the_plan_asks_of_each_node() -> None:
    site, changes = CASES["everything"]
    head, *nodes = pods_of(printed("kuberay", site, **changes))
    assert len(nodes) == 4
    for pod in nodes:
        words = shlex.split(pod.argv[-1])
        assert {"--num-cpus=96", "--num-gpus=8", f"--memory={bytes_of('900GB')}"} <= set(words)
        assert '--resources={"fast": 2.0}' in words, "Ray itself finds the kind of GPU"
        assert (pod.env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"], pod.grace_seconds) == ("300", 330)
        assert pod.shared_memory == "64Gi"
    words = shlex.split(head.argv[-1])
    assert {"--head", "--num-cpus=0", "--num-gpus=0", "--block", '--resources={"login": 0.5}'} <= set(words)
    assert f"--memory={bytes_of('16GB')}" in words
    assert {pod.argv[0] for pod in (head, *nodes)} == {"/bin/bash"}
    group = documents(printed("kuberay", site, **changes))["RayCluster"]["spec"]["workerGroupSpecs"][0]
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["rdma/ib"] == "1"


def test_secrets_are_names_and_every_pod_has_them() -> None:
    site, changes = CASES["everything"]
    for form in FORMS:
        found = documents(printed(form, site, **changes))
        for kind in ("RayCluster", "RayJob", "Deployment"):
            for pod in _pod_specs(found.get(kind, {})):
                assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "store-keys"}}]
                assert {"name": "secret-0", "secret": {"secretName": "aws-file"}} in pod["volumes"]
                assert (pod["serviceAccountName"], pod["imagePullSecrets"]) == ("trainer", [{"name": "registry"}])
        assert "Secret" not in found


def _pod_specs(one: Any) -> list[dict[str, Any]]:
    """Wherever they are in an object."""
    if isinstance(one, list):
        return [pod for item in one for pod in _pod_specs(item)]
    if not isinstance(one, dict):
        return []
    return ([one] if "containers" in one else []) + [pod for item in one.values() for pod in _pod_specs(item)]


def test_the_cluster_file_of_the_head_is_this_cluster() -> None:
    """Storage and all, but for the way to it, and for what only the machine has that launches."""
    site, changes = CASES["everything"]
    kept = {**site, "ray": {**site["ray"], "address": "https://proxy/ray", "token_file": "~/token", "python": "/p"}}
    text = documents(printed("kuberay", kept, **changes))["ConfigMap"]["data"]["cluster.yaml"]
    seen, here = Cluster.model_validate(yaml.safe_load(text)), Cluster.model_validate(kept)
    assert seen.storage == here.storage and seen.node == here.node and seen.environment == here.environment
    ray = {**kept["ray"], "address": "http://127.0.0.1:8265"}
    assert seen.ray == Cluster.model_validate({**kept, "ray": {k: v for k, v in ray.items() if k not in
                                               ("kubernetes", "token_file")}}).ray  # fmt: skip


def test_a_job_holds_its_recipe_and_launches_it() -> None:
    text = printed("kuberay-job")
    found = documents(text)
    assert found["ConfigMap"]["data"]["recipe.yaml"] == LAUNCH.recipe
    spec = found["RayJob"]["spec"]
    words = spec["entrypoint"].split()
    assert words[-3:] == ["/etc/launchyard/recipe.yaml", "/etc/launchyard/cluster.yaml", LAUNCH.run_url]
    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (3, True)
    assert " ".join(words) in submit_script(text, "job-1", "http://head:8265")
    head = pods_of(text)[0]
    assert set(head.files["/etc/launchyard"]) == {"cluster.yaml", "recipe.yaml"}


LAUNCHES = {
    "a folder for runs": ({"run_url": "/runs/x"}, "kuberay", "/runs/x: a folder of this machine"),
    "tokens in a folder": ({"folders": ["/home/me"]}, "kuberay-job", "/home/me: a folder of this machine"),
    "own code": ({"own_code": True}, "kuberay-job", "file of your own code"),
    "a name for a shell": ({"run_url": "s3://b/a;b"}, "kuberay-job", "a;b: KubeRay hands it to shells"),
}


@pytest.mark.parametrize("what", LAUNCHES)
def test_what_pods_would_not_see_is_refused(what: str) -> None:
    changes, form, said = LAUNCHES[what]
    with pytest.raises(UserError, match=re.escape(said)):
        printed(form, launch=LAUNCH.model_copy(update=changes))


def test_what_is_in_a_claim_is_seen() -> None:
    site = {**SITE, "ray": {"kubernetes": {**PODS, "claims": {"/data": "c"}}}}
    launch = LAUNCH.model_copy(update={"run_url": "/data/runs/x", "folders": ["/data/tokens"]})
    for form in FORMS:
        printed(form, site, launch)
    with pytest.raises(UserError, match="/database: a folder"):
        printed("kuberay", site, launch.model_copy(update={"run_url": "/database"}))


SITES = {
    "no section": ({"ray": {"address": "http://x"}}, "ray.kubernetes: cluster site has no such section"),
    "a profile": ({"storage": {"url": "s3://b", "profile": "me"}}, "pods have no ~/.aws"),
    "a file": ({"storage": {"url": "s3://b", "credentials_file": "/k/c"}}, "is in no folder of the pods"),
    "an owner with CPUs": ({"ray": {"owner": {"CPU": 1}, "kubernetes": PODS}}, "the head of this cluster gives none"),
}


@pytest.mark.parametrize("what", SITES)
def test_a_cluster_file_that_does_not_fit(what: str) -> None:
    changes, said = SITES[what]
    with pytest.raises(UserError, match=re.escape(said)):
        printed("kuberay", {**SITE, **changes})


@pytest.mark.parametrize("key", ["cpu", "memory", "nvidia.com/gpu"])
def test_limits_that_have_a_key_of_their_own(key: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"limits.{key}: set it in node")):
        Cluster.model_validate({**SITE, "ray": {"kubernetes": {**PODS, "limits": {key: "1"}}}})


def test_other_schedulers_have_none() -> None:
    with pytest.raises(UserError, match="--output kuberay: for a cluster whose scheduler is ray; this one is slurm"):
        load_manifests("slurm", "kuberay")


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True))
def test_every_name_becomes_one_of_kubernetes(name: str) -> None:
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", object_name(name))


@given(st.integers(1, 10**6), st.sampled_from(["KB", "KiB", "MB", "MiB", "GB", "GiB", "TB", "TiB"]), st.booleans())
def test_a_size_is_as_many_bytes_to_kubernetes(number: int, unit: str, space: bool) -> None:
    size = f"{number}{' ' if space else ''}{unit}"
    assert bytes_in(quantity(size)) == bytes_of(size)


def test_it_is_printed_and_nothing_is_made(tmp_path: Path) -> None:
    """As it is typed: YAML alone on stdout, and mistakes in a line."""
    shell = Shell(tmp_path)
    (shell.here / "site.yaml").write_text(yaml.safe_dump(SITE))
    words = ("quickstart", "--cluster", "./site.yaml", "--nodes", "2", "--output", "kuberay")
    done = shell(*words, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert len(pods_of(done.stdout)) == 3
    assert [path.name for path in shell.here.iterdir()] == ["site.yaml"]
    for more, said in (((), "goes with --dry-run"), (("--dry-run", "--json"), "cannot go with --json")):
        done = shell(*words, *more)
        assert done.returncode == 2 and said in done.stderr
