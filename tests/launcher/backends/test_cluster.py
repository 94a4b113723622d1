"""Clusters: found by name or path, as strict as recipes, and never one that this version cannot drive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launchyard.errors import UserError
from launchyard.launcher.backends.cluster import (
    ClusterStorage,
    Container,
    load_cluster,
    recipe_defaults,
    store_environment,
)
from launchyard.launcher.backends.example.client import Spool
from launchyard.launcher.backends.ray import client
from launchyard.launcher.cli.schema import schema_text
from launchyard.launcher.recipe.bundled import ROOT
from launchyard.launcher.recipe.load import load_recipe
from launchyard.launcher.submit.resume import _cluster as cluster_of_plan
from launchyard.storage.options import StoreOptions
from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.spec import Storage


def test_the_local_cluster_is_this_machine() -> None:
    cluster = load_cluster("local")
    assert (cluster.name, cluster.scheduler, cluster.storage.url) == ("local", "local", "runs")
    assert cluster.node.gpus is None, "counted, not written"


def test_the_users_own_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "launchyard/clusters"
    folder.mkdir(parents=True)
    (folder / "local.yaml").write_text("name: mine\nscheduler: local\nstorage: /scratch\n")
    (folder / "desk.yaml").write_text("name: desk\nscheduler: local\nmetrics: {host: 0.0.0.0}\n")
    assert load_cluster("local").storage.url == "/scratch"
    desk = load_cluster("desk")
    with pytest.raises(UserError, match=r"did you mean desk\?"):
        load_cluster("deks")
    host = load_recipe("quickstart", defaults=recipe_defaults(desk)).recipe.metrics.host
    assert host == "0.0.0.0"
    over = load_recipe("quickstart", {"metrics.host": "10.0.0.1"}, defaults=recipe_defaults(desk))
    assert over.recipe.metrics.host == "10.0.0.1"


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\ntype: slurm\nscheduler: slrum\nnode: {gpu: 8, memory: lots}\nenv: {A: b}\n")
    with pytest.raises(UserError) as caught:
        load_cluster(str(path))
    assert [problem.removeprefix(f"{path}:") for problem in caught.value.problems] == [
        "2: type: unknown key; did you mean scheduler?",
        '3: scheduler: must be one of local, example, ray, slurm; got "slrum"; did you mean slurm?',
        "4: node.gpu: unknown key; did you mean node.gpus?",
        r'4: node.memory: must be text that matches ^\d+ ?[KMGT]i?B$; got "lots"',
        "5: env: unknown key; did you mean environment?",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("environment: {HF_TOKEN: abc}", "looks like a secret"),
        ("environment: {LAUNCHYARD_RANK: a}", "reserved"),
        ("environment: {'A=B': a}", "not the name of a variable"),
        ("setup: [module load cuda]", "runs in your own shell"),
    ],
)
def test_rules(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"name: c\nscheduler: local\n{line}\n")
    with pytest.raises(UserError, match=said) as caught:
        load_cluster(str(path))
    assert "abc" not in str(caught.value)


def test_harmless_names_are_no_secrets(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: c\nscheduler: local\nenvironment: {TOKENIZERS_PARALLELISM: 'false'}\n")
    assert load_cluster(str(path)).environment == {"TOKENIZERS_PARALLELISM": "false"}


def test_the_schema_for_editors_is_current() -> None:
    path = ROOT / "clusters/cluster.schema.json"
    assert path.read_text() == schema_text("cluster"), "launch schema cluster > clusters/cluster.schema.json"


# -- storage ---------------------------------------------------------------------------------------------------------
def storage_of(folder: Path, text: str) -> ClusterStorage:
    path = folder / "s.yaml"
    path.write_text(f"name: s\nscheduler: local\nstorage: {text}\n")
    return load_cluster(str(path)).storage


def test_storage_is_a_text_or_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "keys").touch()
    assert storage_of(tmp_path, "s3://b/runs") == storage_of(tmp_path, "{url: s3://b/runs}")
    assert storage_of(tmp_path, "{endpoint_url: 'http://store:9000'}").url == "runs"
    full = storage_of(
        tmp_path,
        f"{{url: s3://b, region: eu-west-1, credentials_file: {tmp_path}/keys, retry_minutes: 2, cache: /nvme, "
        "cache_size: 2TB}",
    )
    assert full.options.model_dump(exclude_defaults=True) == {
        "region": "eu-west-1",
        "profile": "default",  # named, so that no exported key is taken for it
        "credentials_file": f"{tmp_path}/keys",
    }
    assert full.in_training == Storage(retry_seconds=120.0, cache="/nvme", cache_bytes=2 * 10**12)
    assert storage_of(tmp_path, "{cache_size: 512 MiB}").in_training.cache_bytes == 512 << 20
    assert ClusterStorage().in_training == Storage(), "one default, wherever it is written"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "{url: s3://b, access_key: AKIAX, secret_key: hush}",
            r"s.yaml:3: storage.access_key: unknown key; no secrets",
        ),
        ("{url: s3://b, access_key: AKIAX, secret_key: hush}", r"storage.secret_key: unknown key; no secrets here"),
        ("{url: s3://b, token: hush}", "storage.token: unknown key; no secrets here"),
        ("s3://me:hush@b/runs", "storage: url: the URL holds a password"),
        ("{url: s3://b, endpoint_url: 'https://me:hush@store'}", "endpoint_url: the URL holds a password"),
        ("{url: 's3://b/r?X-Amz-Signature=hush'}", "the URL holds a password or a key"),
        ("{url: s3://b, endpoint_url: store:9000}", "storage.endpoint_url: must be text that matches"),
        ("{url: s3://b, endpoint: 'http://store'}", r"did you mean storage.endpoint_url\?"),
        ("{url: s3://b, credentials_file: /no/such/file}", "storage.credentials_file: /no/such/file: no such file"),
        ("{url: s3://b, cache_size: lots}", "storage.cache_size: must be text that matches"),
        ("{url: s3://b/r, anonymous: true, profile: p}", "no credentials are sent"),
        ("{url: s3://b/r, acl: mine}", "storage.acl"),
        ("7", "storage: must be text or a mapping with the keys url, endpoint_url"),
    ],
)
def test_storage_mistakes_and_secrets_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        storage_of(tmp_path, text)
    assert "hush" not in str(caught.value)


def test_what_is_said_of_a_store_reaches_processes_and_hides_what_is_exported() -> None:
    options = StoreOptions(endpoint_url="http://s", region="r", profile="p", credentials_file="/c")
    env = store_environment(options)
    assert env["AWS_ENDPOINT_URL"] == "http://s" and env["AWS_PROFILE"] == "p"
    assert env["AWS_SHARED_CREDENTIALS_FILE"] == "/c" and env["AWS_DEFAULT_REGION"] == env["AWS_REGION"] == "r"
    assert env["AWS_ACCESS_KEY_ID"] == env["AWS_SECRET_ACCESS_KEY"] == env["AWS_SESSION_TOKEN"] == ""
    assert store_environment(StoreOptions()) == {}, "nothing said: whatever is exported counts"
    assert "AWS_ACCESS_KEY_ID" not in store_environment(StoreOptions(endpoint_url="http://s"))


def test_the_client_of_aws_obeys_a_cluster_whatever_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own rules an exported key or role wins over a profile, and endpoints of the environment can be ignored."""
    botocore = pytest.importorskip("botocore.session")
    file = tmp_path / "credentials"
    file.write_text("[lab]\naws_access_key_id = of-the-lab\naws_secret_access_key = s\n")
    options = StoreOptions(endpoint_url="http://lab:9000", region="r", profile="lab", credentials_file=str(file))
    exported = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ROLE_ARN": "arn:aws:iam::1:role/x"}
    exported |= {"AWS_WEB_IDENTITY_TOKEN_FILE": str(file), "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}
    exported |= {"AWS_ENDPOINT_URL_S3": "http://other", "AWS_DEFAULT_PROFILE": "other", "AWS_REGION": "other"}
    for name, value in {**exported, **store_environment(options)}.items():
        monkeypatch.setenv(name, value)
    session = botocore.Session()
    client = session.create_client("s3")
    assert (client.meta.endpoint_url, client.meta.region_name) == ("http://lab:9000", "r")
    assert session.get_credentials().access_key == "of-the-lab"


def test_options_of_s3_reach_processes_in_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ({"kms_key_id": "k"}, {"acl": "private"}, {"requester_pays": True}, {"anonymous": True}):
        options = StoreOptions(**given)
        with monkeypatch.context() as patch:
            for name, value in store_environment(options).items():
                patch.setenv(name, value)
            assert StoreOptions().completed() == options


def test_a_resume_without_the_cluster_file_finds_the_store_again() -> None:
    store: dict[str, Any] = {"endpoint_url": "http://s", "profile": "p", "credentials_file": "/c"}
    store |= {"kms_key_id": "k", "acl": "private", "requester_pays": True}
    environment = {**store_environment(StoreOptions(**store)), "MINE": "1"}
    frozen = {"cluster": "gone", "scheduler": "local", "store": store, "environment": environment}
    cluster = cluster_of_plan(frozen)
    assert cluster.storage.options == StoreOptions(**store) and cluster.environment == {"MINE": "1"}


def test_paths_of_a_cluster_file_may_begin_with_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token").write_text("secret\n")
    assert Container(runtime="pyxis", image="~/x.sqsh", mounts=["~/data:/data:ro", "/a:/b"]).model_dump() == {
        "runtime": "pyxis",
        "image": f"{tmp_path}/x.sqsh",
        "mounts": [f"{tmp_path}/data:/data:ro", "/a:/b"],
        "python": "python3",
    }
    assert Container(runtime="apptainer", image="docker://me/x:1").image == "docker://me/x:1"
    assert str(Spool("~/spool").folder) == f"{tmp_path}/spool"
    assert ChunkCache("~/chunks").folder == f"{tmp_path}/chunks"
    assert client.read_file("token_file", "~/token").strip() == "secret"
    with pytest.raises(ValueError, match="variables are not expanded"):
        Container(runtime="pyxis", image="$IMAGES/x.sqsh")
    with pytest.raises(ValueError, match="variables are not expanded"):
        ClusterStorage(url="/runs", cache="$TMPDIR/chunks")
    for reading, key in (
        (lambda: Spool("$X/spool"), "example.spool"),
        (lambda: client.read_file("token_file", "$X"), "token_file"),
    ):
        with pytest.raises(UserError, match=f"{key}: .*variables are not expanded"):
            reading()
