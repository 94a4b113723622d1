"""Clusters: found by name or path, as strict as recipes, and never one that this version cannot drive."""

from __future__ import annotations

from pathlib import Path

import pytest

import clusters
from launcher.cluster import load_cluster, recipe_defaults
from launcher.errors import UserError
from launcher.recipe import load_recipe
from launcher.schema import schema_text


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
        '3: scheduler: must be one of local, slurm, ray; got "slrum"',
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


def test_a_scheduler_without_a_backend_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "far.yaml"
    path.write_text("name: far\nscheduler: ray\n")
    monkeypatch.setattr("launcher.cluster.known_backends", lambda: ["local"])
    with pytest.raises(UserError, match=r"far\.yaml: scheduler: this version cannot drive ray yet; it can: local"):
        load_cluster(str(path))


def test_the_schema_for_editors_is_current() -> None:
    path = Path(next(iter(clusters.__path__))) / "cluster.schema.json"
    assert path.read_text() == schema_text("cluster"), "launch schema cluster > clusters/cluster.schema.json"
