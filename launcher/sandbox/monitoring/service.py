"""The monitoring sandbox: `launch monitor`, a real Prometheus with our configuration, and Grafana where there is one.

For this user, on loopback. All its files are in one folder, 0700: configuration, data, logs, and its processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launchyard.errors import LaunchError
from launchyard.host.environment import DASHBOARDS, own_environment
from launchyard.host.ports import free_port
from launchyard.host.processes import end_child, is_alive, python_argv, started_at, wait_until
from launchyard.launcher.recipe.bundled import monitoring_folder
from launchyard.launcher.sandbox import Facts
from launchyard.launcher.sandbox.folder import alone, state_folder, write_private
from launchyard.launcher.sandbox.monitoring.observers import GRAFANA_IMAGE, find_grafana, has_docker, require_prometheus

HOST = "127.0.0.1"
PORTS = {"monitor": 9465, "prometheus": 9090, "grafana": 3000}  # where they are free; else others
READY = {"monitor": "/metrics", "prometheus": "/-/ready", "grafana": "/api/health"}
READY_SECONDS = 60.0
END_SECONDS = 20.0
RETENTION = "30d"
CONTAINER = "launchyard-grafana"


def up(*, report: Callable[[str], None]) -> Facts:
    """See Sandbox.up. UserError without a Prometheus; without a Grafana it reports that and goes on."""
    with alone(_folder()):
        if any(_alive(name) for name in ("monitor", "prometheus")):
            if all(_alive(name) for name in ("monitor", "prometheus")):
                return status()
            _end_all()
        program = require_prometheus(report=report)
        ports = {name: _port(name, wanted) for name, wanted in PORTS.items()}
        _remember({"ports": ports, "processes": {}})
        try:
            _start(
                "monitor",
                [
                    *python_argv(sys.executable),
                    "-m",
                    "launchyard",
                    "monitor",
                    f"--port={ports['monitor']}",
                ],
            )
            write_private(_folder() / "prometheus.yml", prometheus_config(ports))
            _start("prometheus", _prometheus_argv(program, ports))
            _start_grafana(ports, report)
            for name in ("monitor", "prometheus"):
                _wait_ready(name)
        except BaseException:
            _end_all()
            raise
    return status()


def down() -> bool:
    """See Sandbox.down. The data of Prometheus stays. LaunchError if a process does not end."""
    with alone(_folder()):
        return _end_all()


def status() -> Facts:
    """See Sandbox.status. Running means that Prometheus and the monitor live."""
    running = _alive("monitor") and _alive("prometheus")
    if not running:
        return Facts("monitoring", False, str(_folder()), next_commands=("launch sandbox up monitoring",))
    ports = _facts()["ports"]
    grafana = _grafana_runs()
    details: dict[str, Any] = {
        "prometheus": f"http://{HOST}:{ports['prometheus']}",
        "targets": f"http://{HOST}:{ports['monitor']}/targets",
        "grafana": f"http://{HOST}:{ports['grafana']}" if grafana else None,
        "dashboards": str(monitoring_folder() / "grafana" / "dashboards"),
        "rules": str(monitoring_folder() / "rules"),
    }
    following = (f"{details['grafana'] or details['prometheus'] + '/alerts'}", "launch sandbox down monitoring")
    return Facts("monitoring", True, str(_folder()), details, following)


def environment() -> dict[str, str]:
    """See Sandbox.environment."""
    ports = _facts().get("ports", PORTS)
    return {"PROMETHEUS_URL": f"http://{HOST}:{ports['prometheus']}"}


# -- configuration ---------------------------------------------------------------------------------------------------
def prometheus_config(ports: dict[str, int]) -> str:
    """The configuration that we ship, with the paths of the rules and the port of the monitor."""
    import yaml

    shipped = monitoring_folder()
    config = yaml.safe_load((shipped / "prometheus.yml").read_text())
    config["rule_files"] = [str(shipped / name) for name in config["rule_files"]]
    address = f"{HOST}:{ports['monitor']}"
    runs, own = config["scrape_configs"]
    runs["http_sd_configs"][0]["url"] = f"http://{address}/targets"
    own["static_configs"] = [{"targets": [address]}]
    return yaml.safe_dump(config, sort_keys=False)


def _prometheus_argv(program: str, ports: dict[str, int]) -> list[str]:
    return [
        program,
        f"--config.file={_folder() / 'prometheus.yml'}",
        f"--storage.tsdb.path={_folder() / 'prometheus'}",
        f"--storage.tsdb.retention.time={RETENTION}",
        f"--web.listen-address={HOST}:{ports['prometheus']}",
    ]


def _grafana_settings(ports: dict[str, int]) -> dict[str, str]:
    """Grafana reads them from its environment. Users of this machine's loopback may read, and change nothing."""
    return {
        "GF_SERVER_HTTP_ADDR": HOST,
        "GF_SERVER_HTTP_PORT": str(ports["grafana"]),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "PROMETHEUS_URL": f"http://{HOST}:{ports['prometheus']}",
    }


def _start_grafana(ports: dict[str, int], report: Callable[[str], None]) -> None:
    shipped = monitoring_folder() / "grafana"
    settings = _grafana_settings(ports)
    dashboards = shipped / "dashboards"
    found = find_grafana()
    if found is not None:
        command, home = found
        own = {
            "GF_PATHS_DATA": str(_folder() / "grafana"),
            "GF_PATHS_LOGS": str(_folder() / "grafana" / "log"),
            "GF_PATHS_PROVISIONING": str(shipped / "provisioning"),
            "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": str(dashboards / "fleet.json"),
            DASHBOARDS: str(dashboards),
        }
        _start("grafana", [*command, "--homepath", home], env={**settings, **own})
    elif has_docker():
        problem = _start_container(shipped, settings)
        if problem:
            report(f"Grafana's container does not start: {problem}; the dashboards to import: {dashboards}")
    else:
        report(f"neither Grafana nor Docker found: any Grafana from 10 on can import the dashboards: {dashboards}")


def _start_container(shipped: Path, settings: dict[str, str]) -> str:
    """Returns an empty text, or the reason of a failure."""
    inside = {
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": "/etc/launchyard/dashboards/fleet.json",
        DASHBOARDS: "/etc/launchyard/dashboards",
    }
    argv = ["docker", "run", "--detach", "--rm", "--name", CONTAINER, "--network", "host"]
    argv += [f"--env={name}={value}" for name, value in {**settings, **inside}.items()]
    argv += [f"--volume={shipped / 'provisioning'}:/etc/grafana/provisioning:ro"]
    argv += [f"--volume={shipped / 'dashboards'}:/etc/launchyard/dashboards:ro", GRAFANA_IMAGE]
    try:
        done = subprocess.run(argv, env=own_environment(), capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    _remember({**_facts(), "container": done.stdout.strip()})
    return ""


# -- processes -------------------------------------------------------------------------------------------------------
def _start(name: str, argv: list[str], *, env: dict[str, str] | None = None) -> None:
    path = _folder() / f"{name}.log"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
        process = subprocess.Popen(
            argv,
            env={**own_environment(), **(env or {})},
            cwd=_folder(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    facts = _facts()
    facts["processes"][name] = [process.pid, started_at(process.pid)]
    _remember(facts)
    if not wait_until(lambda: process.poll() is not None, seconds=0.2):
        process.returncode = 0  # it is meant to outlive us: no warning, and nobody waits for it
        return
    end_child(process)
    raise LaunchError(f"{name} ended at once (exit code {process.returncode}): {_last_line(name)}", hint=f"see {path}")


def _wait_ready(name: str) -> None:
    url = f"http://{HOST}:{_facts()['ports'][name]}{READY[name]}"

    def answers() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5.0) as answer:
            return int(answer.status) == 200
        return False

    if not wait_until(lambda: answers() or not _alive(name), seconds=READY_SECONDS) or not _alive(name):
        raise LaunchError(f"{name} did not become ready: {_last_line(name)}", hint=f"see {_folder() / name}.log")


def _last_line(name: str) -> str:
    lines = (_folder() / f"{name}.log").read_text(errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else "it printed nothing"


def _alive(name: str) -> bool:
    found = _facts().get("processes", {}).get(name)
    return bool(found and found[1] is not None and is_alive(*found))


def _grafana_runs() -> bool:
    return _alive("grafana") or bool(_facts().get("container"))


def _end_all() -> bool:
    """Ends the processes that we have started, the last first. Returns True if any was running."""
    facts = _facts()
    ended = False
    if facts.pop("container", None):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ["docker", "stop", CONTAINER], env=own_environment(), capture_output=True, timeout=60, check=False
            )
        ended = True
    for name, (pid, started) in reversed(list(facts.get("processes", {}).items())):
        if started is not None and is_alive(pid, started):
            _end(name, pid, started)
            ended = True
    _remember({**facts, "processes": {}})
    return ended


def _end(name: str, pid: int, started: float) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if wait_until(lambda: not is_alive(pid, started), seconds=END_SECONDS):
            return
    raise LaunchError(f"process {pid} ({name}) of the monitoring sandbox does not end, not even by SIGKILL")


def _port(name: str, wanted: int) -> int:
    """The usual one, the one of the last time, or another that is free."""
    import socket

    for port in (wanted, int(_facts().get("ports", {}).get(name, 0))):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if port:
                probe.bind((HOST, port))
                return port
    return free_port()


# -- its folder ------------------------------------------------------------------------------------------------------
def _folder() -> Path:
    return state_folder("monitoring")


def _facts() -> dict[str, Any]:
    try:
        return dict(json.loads((_folder() / "processes.json").read_text()))
    except (OSError, ValueError):
        return {}


def _remember(facts: dict[str, Any]) -> None:
    write_private(_folder() / "processes.json", json.dumps(facts))
