"""Real runs on a Ray of several nodes: `launch` as a person types it, and what they left, for tests."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import yaml

from launchyard.run.rundir import RunDir
from tests.ray.cluster import RayCluster
from tests.slurm import runs as on_slurm
from tests.slurm.runs import FOREVER, LONG, LOSABLE, above, kill, same_training


class Site(on_slurm.Site):
    """A person's folder with a recipe, and a cluster file `site` for a Ray that is up."""

    cluster: RayCluster  # type: ignore[assignment]

    def write_cluster(self, *, environment: dict[str, str] | None = None, cpus: int = 1, **ray: Any) -> None:
        cluster = {
            "name": "site",
            "scheduler": "ray",
            "node": {"cpus": cpus},
            "ray": {"address": self.cluster.site.address, "python": sys.executable, "wait_seconds": 2, **ray},
            "environment": {"OMP_NUM_THREADS": "1", **(environment or {})},
            "storage": str(self.here / "runs"),
        }
        folder = Path(self.env["XDG_CONFIG_HOME"]) / "launchyard/clusters"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "site.yaml").write_text(yaml.safe_dump(cluster))

    def launch(self, name: str, *words: str, nodes: int = 2) -> OnRay:  # type: ignore[override]
        """Submit a run; returns once Ray has taken it."""
        url = str(self.here / "runs" / name)
        self.urls.append(url)
        said = self.ok("tiny.yaml", "--cluster", "site", "--nodes", str(nodes), "--run-url", url, "--json", *words)
        return OnRay(self, RunDir(url), json.loads(said)["run_id"])


class OnRay(on_slurm.OnSite):
    """A run on Ray, and what a test waits for."""

    cluster: RayCluster  # type: ignore[assignment]

    @property
    def job(self) -> str:  # type: ignore[override]
        newest = self.run.newest_submission()
        assert newest is not None
        return newest.job_id

    def looks(self) -> str:
        return f"{super().looks()}\n--- job\n{self.cluster.site.dashboard.logs(self.job)[-4000:]}"

    def node(self, rank: int, attempt: int = 0) -> str:
        """The node that has this node rank."""
        return str(self.run.read_json(f"attempts/{attempt:04d}/nodes.json")[rank]["host"])

    def actor(self, rank: int, attempt: int = 0) -> int:
        """The process of an actor."""
        return int(self.run.read_json(f"attempts/{attempt:04d}/nodes.json")[rank]["pid"])

    def agent(self, rank: int, attempt: int = 0) -> int:
        """The process of an agent."""
        return int(self.run.read_json(f"attempts/{attempt:04d}/nodes.json")[rank]["agent"])

    def standing_by(self) -> list[int]:
        """The next torchrun of each node, once its server is there, too."""
        found = []
        for process in self.cluster.processes():
            try:
                if "--standby" in process.cmdline() and process.children(recursive=True):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    def nothing_left(self, seconds: float = 10.0) -> None:
        """No process of the run, on no node, and no actor of it."""
        self.wait(lambda: not self.marked_pids() and not self.actors(), seconds)

    def actors(self) -> list[int]:
        """Processes of ours that Ray started."""
        found = []
        for process in self.cluster.site.processes():
            try:
                if process.name().startswith("ray::NodeActor"):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found


def end_process(pid: int) -> None:
    os.kill(pid, 9)


__all__ = ["FOREVER", "LONG", "LOSABLE", "OnRay", "Site", "above", "end_process", "kill", "same_training"]
