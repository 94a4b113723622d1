"""A real Prometheus with our configuration for tests, fed by a real `launch monitor`; both end with the test."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from launchyard.host.ports import free_port
from launchyard.host.processes import end_child
from launchyard.launcher.recipe.bundled import monitoring_folder
from launchyard.launcher.sandbox.monitoring.service import prometheus_config

SECOND = "1s"
# Seconds instead of minutes.
FAST = {"for: 1m": "for: 1s", "for: 2m": "for: 1s", "for: 15m": "for: 1s", "> 1 * max": "> 0.05 * max"}


class Watching:
    """Prometheus that looks every second, and the monitor of one user's runs."""

    def __init__(
        self,
        folder: Path,
        program: str,
        env: dict[str, str],
        *,
        fast: dict[str, str] | None = None,
        webhook: str | None = None,
    ) -> None:
        """`fast`: what is replaced in the rules. `webhook`: where the monitor pages besides."""
        self.folder = folder
        folder.mkdir(parents=True)
        self.processes: dict[str, subprocess.Popen[Any]] = {}  # monitor, prometheus
        self.ports = {"monitor": free_port(), "prometheus": free_port()}
        words = [
            "monitor",
            f"--port={self.ports['monitor']}",
            "--every=0.5",
            *([f"--webhook={webhook}"] if webhook else []),
        ]
        self._start("monitor", [sys.executable, "-m", "launchyard", *words], env)
        config = folder / "prometheus.yml"
        self._whole = self._config(fast or {})
        config.write_text(self._whole)
        self._start(
            "prometheus",
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.ports['prometheus']}",
            ],
            env,
        )
        self.wait(lambda: self.query("up{job='launchyard-monitor'} == 1"), 30)

    def _config(self, fast: dict[str, str]) -> str:
        config = yaml.safe_load(prometheus_config(self.ports))
        config["global"] = {"scrape_interval": SECOND, "scrape_timeout": SECOND, "evaluation_interval": SECOND}
        config["scrape_configs"][0]["http_sd_configs"][0]["refresh_interval"] = SECOND
        rules = self.folder / "rules"
        rules.mkdir()
        for path in (monitoring_folder() / "rules").glob("*.yml"):
            text = path.read_text()
            for old, new in fast.items():
                text = text.replace(old, new)
            (rules / path.name).write_text(text)
        config["rule_files"] = [str(rules / "*.yml")]
        return yaml.safe_dump(config)

    def _start(self, name: str, argv: list[str], env: dict[str, str]) -> None:
        with open(self.folder / f"{name}.log", "wb") as log:
            self.processes[name] = subprocess.Popen(
                argv, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def scrape_runs(self, on: bool) -> None:
        """Off: by a relabelling that drops all workers. The configuration is read anew."""
        config = yaml.safe_load(self._whole)
        if not on:
            (runs,) = [one for one in config["scrape_configs"] if one["job_name"] == "launchyard"]
            runs["relabel_configs"] = [*runs.get("relabel_configs", []), {"action": "drop", "regex": ".*"}]
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.processes["prometheus"].send_signal(signal.SIGHUP)

    def close(self) -> None:
        for process in self.processes.values():
            end_child(process)

    # -- asking --------------------------------------------------------------------------------------------------------
    def _ask(self, path: str, **words: Any) -> Any:
        url = f"http://127.0.0.1:{self.ports['prometheus']}/api/v1/{path}?{urllib.parse.urlencode(words)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code == 503:  # not up yet
                raise ConnectionError from None
            raise AssertionError(f"{words}: {error.read().decode()}") from None
        assert found["status"] == "success", found
        return found["data"]

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """The samples, or the raw ones of a range selector; none while it does not answer yet."""
        try:
            return list(self._ask("query", query=expr, **({"time": at} if at else {}))["result"])
        except OSError:
            return []

    def over(self, expr: str, since: float, until: float, step: float = 0.5) -> list[dict[str, Any]]:
        return list(self._ask("query_range", query=expr, start=since, end=until, step=step)["result"])

    def series(self, match: str, since: float) -> list[dict[str, str]]:
        return list(self._ask("series", **{"match[]": match, "start": since}))

    def value(self, expr: str) -> float | None:
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> set[str]:
        return {one["metric"]["alertname"] for one in self.query('ALERTS{alertstate="firing"}')}

    def wait(self, done: Callable[[], Any], seconds: float = 60.0) -> Any:
        end = time.monotonic() + seconds
        while not (value := done()):
            assert time.monotonic() < end, self.looks()
            time.sleep(0.2)
        return value

    def looks(self) -> str:
        logs = [f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(self.folder.glob("*.log"))]
        return "\n".join([*logs, str(self.firing())])


@contextmanager
def watching(*words: Any, **how: Any) -> Iterator[Watching]:
    found = None
    try:
        found = Watching(*words, **how)
        yield found
    finally:
        if found is not None:
            found.close()


def plain_query(expr: str) -> str:
    """A dashboard's query as Grafana would send it, for all clusters, runs and nodes."""
    expr = expr.replace("$__rate_interval", "1m").replace("$__interval", "1m").replace("$__range", "10m")
    return re.sub(r"\$\{?\w+\}?", ".*", expr)
