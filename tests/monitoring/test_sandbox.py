"""The monitoring sandbox as people use it: up, whole again after a loss, down, with nothing left running."""

from __future__ import annotations

import json
import os
import signal
import stat
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from launchyard.host.processes import is_alive, wait_until
from launchyard.launcher.cli.main import cli
from launchyard.launcher.sandbox import load_sandbox
from launchyard.launcher.sandbox.monitoring import observers, service

pytestmark = pytest.mark.monitoring


def sandbox(*words: str) -> Result:
    return CliRunner().invoke(cli, ["sandbox", *words], standalone_mode=False, catch_exceptions=False)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prometheus: str) -> Iterator[Path]:
    """A user's folders, a machine with nothing but Prometheus, and nothing left running at the end."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(service, "require_prometheus", lambda report: prometheus)
    monkeypatch.setattr(service, "find_grafana", lambda: None)
    monkeypatch.setattr(service, "has_docker", lambda: False)
    yield tmp_path
    service.down()


def answer(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as said:
        return json.loads(said.read())


def processes() -> dict[str, tuple[int, float]]:
    return dict(service._facts()["processes"])


def test_up_down(home: Path) -> None:
    said = sandbox("up", "monitoring", "--json").stdout
    facts = json.loads(said[said.index("{") :])
    assert facts["running"] and facts["grafana"] is None and Path(facts["dashboards"], "run.json").exists()
    url = facts["prometheus"]
    assert url.startswith("http://127.0.0.1:")
    names = {rule["name"] for group in answer(f"{url}/api/v1/rules")["data"]["groups"] for rule in group["rules"]}
    assert {"RunStalled", "Watchdog"} <= names
    assert answer(facts["targets"]) == []

    def seen() -> bool:
        found = answer(f"{url}/api/v1/targets")["data"]["activeTargets"]
        return [one["health"] for one in found if one["labels"]["job"] == "launchyard-monitor"] == ["up"]

    assert wait_until(seen, seconds=30, every=0.5)
    before = processes()
    assert sandbox("up", "monitoring").exit_code == 0 and processes() == before, "it is there already"
    assert f"PROMETHEUS_URL={url}" in sandbox("env", "monitoring").output
    assert stat.S_IMODE(Path(facts["folder"]).stat().st_mode) == 0o700
    assert sandbox("down", "monitoring").output == "monitoring is down\n"
    assert not [one for one in before.values() if is_alive(*one)]
    assert "it was not running" in sandbox("down", "monitoring").output
    assert not load_sandbox("monitoring").status().running


def test_half_of_it_is_made_whole(home: Path) -> None:
    sandbox("up", "monitoring")
    before = processes()
    os.kill(before["prometheus"][0], signal.SIGKILL)
    assert wait_until(lambda: not is_alive(*before["prometheus"]), seconds=5)
    assert not load_sandbox("monitoring").status().running
    sandbox("up", "monitoring")
    assert load_sandbox("monitoring").status().running
    assert processes()["prometheus"] != before["prometheus"] and not is_alive(*before["monitor"])


def test_a_machine_without_prometheus_is_told_how_to_get_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launchyard.errors import UserError

    monkeypatch.setattr(observers.shutil, "which", lambda *words, **how: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    with pytest.raises(UserError, match="not installed") as error:
        observers.require_prometheus(report=print)
    assert "prometheus.io/download" in str(error.value.hint)
