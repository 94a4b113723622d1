"""What promtool says of our configuration, rules and series, and that each alert fires in its case alone."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from launchyard.launcher.monitor.discovery import Discovery
from launchyard.launcher.monitor.server import Monitor, exposition
from launchyard.launcher.recipe.bundled import monitoring_folder
from launchyard.launcher.sandbox.monitoring.service import prometheus_config
from launchyard.training.telemetry.exporter import Exporter
from launchyard.training.telemetry.metric_table import METRICS
from tests.monitoring.made import Made

pytestmark = pytest.mark.monitoring
SHIPPED = monitoring_folder()
CASES = sorted((SHIPPED / "tests").glob("*.yml"))


def run(*words: str, stdin: str = "") -> str:
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield


def test_the_configuration_is_one(promtool: str, tmp_path: Path) -> None:
    assert "SUCCESS" in run(promtool, "check", "config", str(SHIPPED / "prometheus.yml"))
    made = tmp_path / "prometheus.yml"
    made.write_text(prometheus_config({"monitor": 1234, "prometheus": 1235}))
    assert "SUCCESS" in run(promtool, "check", "config", str(made))
    assert "127.0.0.1:1234/targets" in made.read_text()


def test_rules_are_rules(promtool: str) -> None:
    for path in sorted((SHIPPED / "rules").glob("*.yml")):
        assert "SUCCESS" in run(promtool, "check", "rules", str(path))


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_each_alert_fires_in_its_case_and_is_silent_in_its_counter_case(promtool: str, cases: Path) -> None:
    assert "SUCCESS" in run(promtool, "test", "rules", str(cases))


def test_a_case_that_is_wrong_is_found(promtool: str, tmp_path: Path) -> None:
    """The cases are read: with other rules they fail."""
    cases = yaml.safe_load((SHIPPED / "tests" / "alerts.yml").read_text())
    rules = tmp_path / "alerts.yml"
    rules.write_text((SHIPPED / "rules/alerts.yml").read_text().replace("> 1.2\n", "> 12\n"))
    cases["tests"] = [case for case in cases["tests"] if case["name"].startswith("Straggler")]
    cases["rule_files"] = [str(SHIPPED / "rules/recorded.yml"), str(rules)]
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(cases))
    with pytest.raises(AssertionError, match="Straggler"):
        run(promtool, "test", "rules", str(tmp_path / "cases.yml"))


@pytest.mark.usefixtures("own_registry")
def test_our_series_are_good_series(promtool: str, tmp_path: Path) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    made = Made(tmp_path, clock=time.time() - 60)
    made.begin(alive=True)
    assert run(promtool, "check", "metrics", stdin=exposition(Monitor(Discovery()).refresh())) == ""
    exporter = Exporter(rank=0, host="127.0.0.1")
    try:
        for metric in METRICS:
            labels = {label: "x" for label in metric.labels if label != "rank"}
            if metric.source == "trainer":
                tell = {"gauge": exporter.set, "counter": exporter.add, "histogram": exporter.observe}[metric.kind]
                tell(metric.name, 1.0, **labels)
        registry = CollectorRegistry()
        registry.register(exporter)
        assert run(promtool, "check", "metrics", stdin=generate_latest(registry).decode()) == ""
    finally:
        exporter.close()


def test_the_alertmanager_example_and_the_compose_file_are_yaml() -> None:
    routes = yaml.safe_load((SHIPPED / "alertmanager.example.yml").read_text())
    names = {receiver["name"] for receiver in routes["receivers"]}
    assert {routes["route"]["receiver"], *(route["receiver"] for route in routes["route"]["routes"])} <= names
    services = yaml.safe_load((SHIPPED / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert service["network_mode"] == "host", "the monitor and the workers listen on loopback"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (SHIPPED / source).exists(), source
