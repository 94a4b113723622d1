"""The table of metrics, the dashboards, the rules, their tests and the docs agree, both ways."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchyard.launcher.monitor.dashboards.__main__ import known_to_grafana
from launchyard.run.goodput import CAUSES
from launchyard.training.telemetry.metric_table import METRICS, STATES
from launchyard.training.telemetry.phases import PHASES

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "clusters" / "monitoring"
RULES = sorted((SHIPPED / "rules").glob("*.yml"))
DASHBOARDS = sorted((SHIPPED / "grafana" / "dashboards").glob("*.json"))
SERIES = re.compile(r"\b((?:trainer|launcher)_[a-z0-9_]+)")
RECORDED = re.compile(r"\blaunchyard:[a-z_:]+")
# Series that are read where they are, and drawn nowhere.
UNDRAWN: set[str] = set()


def known_series() -> dict[str, Any]:
    found = {}
    for metric in METRICS:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        found.update({f"{metric.name}{suffix}": metric for suffix in suffixes})
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def panels(path: Path) -> Iterator[dict[str, Any]]:
    for panel in json.loads(path.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel
        yield from panel.get("panels", [])


def dashboard_queries(path: Path) -> list[str]:
    board = json.loads(path.read_text())
    found = [target["expr"] for panel in panels(path) for target in panel["targets"]]
    found += [one["expr"] for one in board["annotations"].get("list", []) if "expr" in one]
    return found + [one["query"]["query"] for one in board["templating"]["list"] if one["type"] == "query"]


def queries() -> list[str]:
    return [str(rule["expr"]) for rule in rules()] + [one for path in DASHBOARDS for one in dashboard_queries(path)]


def test_what_is_asked_for_is_in_the_table() -> None:
    known = known_series()
    for query in queries():
        assert not set(SERIES.findall(query)) - known.keys(), query
        assert not set(RECORDED.findall(query)) - {rule.get("record") for rule in rules()}, query


def test_what_is_in_the_table_is_shown_or_watched() -> None:
    asked = {name for query in queries() for name in SERIES.findall(query)}
    unused = {metric.name for metric in METRICS if not any(name.startswith(metric.name) for name in asked)}
    assert unused == UNDRAWN


def test_labels_are_those_of_the_table() -> None:
    """Every label that a query selects or sums by belongs to the series in it, or comes with every target."""
    always = {"cluster", "run_id", "attempt", "node", "job", "instance", "le", "alertname", "severity", "alertstate"}
    known = known_series()
    for query in queries():
        labels = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|=|!=)\s*\"", query))
        labels |= {
            word.strip() for group in re.findall(r"(?:by|on|ignoring) \(([^)]*)\)", query) for word in group.split(",")
        }
        theirs = {label for name in SERIES.findall(query) for label in known[name].labels}
        theirs |= {"phase"} if RECORDED.search(query) else set()
        assert labels - {""} <= always | theirs, query


@pytest.mark.parametrize(("label", "values"), [("phase", PHASES), ("cause", tuple(CAUSES))])
def test_values_of_labels_exist(label: str, values: tuple[str, ...]) -> None:
    for query in queries():
        assert set(re.findall(rf'\b{label}!?="([^"]*)"', query)) <= set(values), query


def test_states_that_are_asked_for_exist() -> None:
    from typing import get_args

    from launchyard.launcher.monitor.tally import RESULTS
    from launchyard.launcher.runs.state import State

    allowed = {"trainer_state": STATES, "launcher_run_state": get_args(State), "launcher_run_attempts_total": RESULTS}
    for query in queries():
        for name, words in re.findall(r'(\w+)\{[^}]*\b(?:state|result)=~?"([^"]*)"', query):
            if name in allowed:
                assert set(words.split("|")) <= set(allowed[name]), query


# -- alerts ----------------------------------------------------------------------------------------------------------
def test_every_alert_says_what_to_do() -> None:
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    assert repository.startswith("https://")
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("critical", "warning", "none"), name
        words = rule["annotations"]
        assert words["summary"] and words["description"].endswith("."), name
        assert words["runbook_url"] == f"{repository}/blob/main/docs/guides/alerts.md#{name.lower()}"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    heads = re.findall(r"^### (\w+)$", (ROOT / "docs/guides/alerts.md").read_text(), re.MULTILINE)
    assert sorted(heads) == sorted(alerts())


def test_every_alert_has_a_case_and_a_counter_case() -> None:
    files = (SHIPPED / "tests").glob("*.yml")
    cases = [case["name"] for path in files for case in yaml.safe_load(path.read_text())["tests"]]
    for name in alerts():
        assert any(case.startswith(f"{name} fires: ") for case in cases), name
        if name != "Watchdog":  # fires always
            assert any(case.startswith(f"{name} is silent: ") for case in cases), name


def test_every_alert_was_seen_on_a_real_run() -> None:
    """The table names a test for each, and that test, or a function that it calls, names the alert."""
    text = (ROOT / "docs/guides/alerts.md").read_text()
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| `(\w+\.py)::(\w+)` \|$", text, re.MULTILINE)
    assert sorted(alert for alert, _, _ in rows) == sorted(alerts())
    for alert, file, test in rows:
        assert test.startswith("test_") and alert in named_below(Path(__file__).with_name(file), test), alert


def named_below(path: Path, function: str) -> set[str]:
    """The texts in a function of a file, and in those of the same file that it calls, however far down."""
    known = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    found = set[str]()
    left, done = [function], set[str]()
    while left:
        name = left.pop()
        done.add(name)
        nodes = list(ast.walk(known[name]))
        found |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        left += {node.id for node in nodes if isinstance(node, ast.Name) and node.id in known} - done
    return found


# -- dashboards ------------------------------------------------------------------------------------------------------
def test_dashboards_are_what_the_builder_makes() -> None:
    argv = [sys.executable, "-m", "launchyard.launcher.monitor.dashboards", "--check"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_grafanas_own_types_read_them(path: Path) -> None:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    raw = json.loads(path.read_text())
    again = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(raw)))
    assert known_to_grafana(again) == raw


def test_dashboards_lead_to_each_other_with_what_is_looked_at() -> None:
    """The time range, the data source and the cluster; to a run from each row of a table that has one."""
    boards = {path.stem: json.loads(path.read_text()) for path in DASHBOARDS}
    variables = {name: {one["name"] for one in board["templating"]["list"]} for name, board in boards.items()}
    for name, other in (("fleet", "run"), ("run", "fleet")):
        (link,) = boards[name]["links"]
        assert link["url"].startswith(f"/d/{boards[other]['uid']}?") and link["keepTime"]
        kept = set(re.findall(r"\$\{(\w+):queryparam\}", link["url"]))
        assert {"datasource", "cluster"} <= kept <= variables[name] & variables[other]
    rows = [
        prop["value"][0]["url"]
        for panel in panels(DASHBOARDS[0])
        for override in panel["fieldConfig"]["overrides"]
        for prop in override["properties"]
        if prop["id"] == "links"
    ]
    assert len(rows) == 2, "of runs and of alerts"
    for url in rows:
        assert url.startswith(f"/d/{boards['run']['uid']}?${{__url_time_range}}&")
        assert set(re.findall(r"var-(\w+)=", url)) == {"datasource", "cluster", "run_id"} <= variables["run"]


def test_panels_have_numbers_of_their_own() -> None:
    for path in DASHBOARDS:
        every = [one for panel in json.loads(path.read_text())["panels"] for one in (panel, *panel.get("panels", ()))]
        assert [one["id"] for one in every] == list(range(1, len(every) + 1))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_imported_anywhere(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["schemaVersion"] >= 36 and board["uid"].startswith("launchyard-") and "id" not in board
    names = [one["name"] for one in board["templating"]["list"]]
    assert names[0] == "datasource", "no data source of ours is built in"
    for panel in panels(path):
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
    used = {name for query in dashboard_queries(path) for name in re.findall(r"\$(\w+)", query)}
    assert used <= {*names, "__rate_interval"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_says_what_good_looks_like(path: Path) -> None:
    for panel in panels(path):
        assert panel["description"].endswith((".", ").")) and len(panel["description"]) > 4, panel["title"]
        assert panel["gridPos"]["w"] and panel["gridPos"]["h"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_do_not_lie_on_each_other(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(path.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
