"""Real runs on the sandbox: `launch` as a person types it, the real worker with gloo, and what they left, for tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from launchyard.host.processes import end_marked, marked, worker_rank
from launchyard.run.rundir import RunDir
from launchyard.training.recipe import apply_overrides
from tests.slurm.cluster import SlurmCluster
from tests.support.shell import Shell
from tests.support.small_runs import MODEL, final_weights, history, write_data

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": MODEL,
    "data": {"source": "tokens/train", "seq_len": 16, "seed": 3},
    "train": {"max_steps": 60, "global_batch_size": 8, "seed": 1, "device": "cpu"},
    "optimizer": {"lr": 3e-3},
    "schedule": {"warmup_steps": 4},
    "checkpoint": {"every_steps": 20},
    "metrics": {"prometheus": False},
    "resources": {"nproc_per_node": 1, "max_failures": 2},
}
LOSABLE = 2 * 20  # steps from one checkpoint to the next, and those until a save waits for the one before it
LONG = "train.max_steps=240"  # long enough to be hit in the middle
FOREVER = "train.max_steps=100000"


class Site(Shell):
    """A person's folder with a recipe, and a cluster file `site` for a SLURM that is up."""

    def __init__(self, root: Path, cluster: SlurmCluster, **slurm: Any) -> None:
        super().__init__(root)
        self.env |= {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
        self.cluster, self.urls = cluster, list[str]()
        self.runs = str(self.here / "runs")
        write_data(self.here / "tokens", 40_000)
        self.write_recipe()
        self.write_cluster(**slurm)

    # -- files ---------------------------------------------------------------------------------------------------------
    def write_recipe(self, **changes: Any) -> None:
        recipe = apply_overrides(RECIPE, {key.replace("__", "."): value for key, value in changes.items()})
        (self.here / "tiny.yaml").write_text(yaml.safe_dump(recipe))

    def write_cluster(
        self, *, environment: dict[str, str] | None = None, storage: dict[str, str] | None = None, **slurm: Any
    ) -> None:
        cluster = {
            "name": "site",
            "scheduler": "slurm",
            "node": {"cpus": 2},
            "slurm": {"partition": "spot", "notice_seconds": 10, **slurm},
            "environment": {"OMP_NUM_THREADS": "1", **self.cluster.env, **(environment or {})},
            "storage": {"url": self.runs, **(storage or {})},
        }
        folder = Path(self.env["XDG_CONFIG_HOME"]) / "launchyard/clusters"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "site.yaml").write_text(yaml.safe_dump(cluster))

    # -- launch --------------------------------------------------------------------------------------------------------
    def ok(self, *words: str, code: int = 0, timeout: float = 100) -> str:
        done = self(*words, timeout=timeout)
        assert done.returncode == code, f"launch {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stdout + done.stderr

    def launch(self, name: str, *words: str, nodes: int = 2) -> OnSite:
        """Submit a run; returns once it is queued."""
        url = f"{self.runs}/{name}"
        self.urls.append(url)
        said = self.ok("tiny.yaml", "--cluster", "site", "--nodes", str(nodes), "--run-url", url, "--json", *words)
        return OnSite(self, RunDir(url), json.loads(said)["run_id"])

    def undisturbed(self, name: str, *words: str, workers: int = 2) -> RunDir:
        """The same recipe on this machine with as many workers."""
        run = RunDir(str(self.here / name))
        self.urls.append(run.url)
        self.ok("tiny.yaml", "--run-url", run.url, "--follow", f"resources.nproc_per_node={workers}", *words)
        return run

    def close(self) -> None:
        for url in self.urls:
            end_marked(url)


class OnSite:
    """A run on SLURM, and what a test waits for."""

    def __init__(self, site: Site, run: RunDir, run_id: str) -> None:
        self.site, self.run, self.run_id, self.cluster = site, run, run_id, site.cluster

    @property
    def job(self) -> int:
        newest = self.run.newest_submission()
        assert newest is not None
        return int(newest.job_id)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.site.ok("status", self.run_id, "--json")))

    def why(self) -> str:
        return " ".join(self.site.ok("why", self.run_id).split())

    def wait(self, done: Callable[[], Any], seconds: float = 60.0) -> Any:
        try:
            return self.cluster.wait(done, "what the test waits for", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.looks()}") from None

    def looks(self) -> str:
        logs = [*Path(self.run.url).glob("*.log"), *Path(self.run.url).glob("attempts/*/logs/*.log")]
        parts = [f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(logs)]
        return "\n".join([*parts, *(f"{n}: {self.run.events(n)}" for n in self.run.attempts())])

    def step(self, attempt: int) -> int:
        """The last step of an attempt; 0 before it made one."""
        return max((row["step"] for row in self.run.rows("steps") if row["attempt"] == attempt), default=0)

    def steps(self, count: int = 3, *, attempt: int = 0, seconds: float = 60.0) -> None:
        """Until an attempt has made that many steps since it began."""

        def made() -> bool:
            rows = [row for row in self.run.rows("steps") if row["attempt"] == attempt]
            return len(rows) >= count

        self.wait(made, seconds)

    def outcome(self, seconds: float = 90.0, *, attempt: int = 0) -> Any:
        """The run's last word, of this attempt or a later one, once SLURM has ended its job."""
        record = self.wait(
            lambda: (record := self.run.outcome()) and record.attempt >= attempt and record,
            seconds,
        )
        self.cluster.wait_job(self.job, seconds=30)
        return record

    def workers(self, attempt: int) -> list[psutil.Process]:
        """By rank."""
        found = {}
        for process in marked(self.run.url, attempt=attempt):
            try:
                if (rank := worker_rank(process)) is not None:
                    found[rank] = process
            except psutil.Error:
                continue
        return [found[rank] for rank in sorted(found)]

    def marked_pids(self) -> list[int]:
        """Of torchrun and workers, and of the agents and the owner, whose words name the run."""
        return [process.pid for process in marked(self.run.url)] + [process.pid for process in self.above("launcher.")]

    def above(self, module: str) -> list[psutil.Process]:
        """Processes on the nodes that run a module of ours for this run."""
        found = []
        for process in self.cluster.processes():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if self.run.url in words and words[0].endswith(PYTHONS) and any(word.startswith(module) for word in words):
                found.append(process)
        return found

    def nothing_left(self, seconds: float = 10.0) -> None:
        self.wait(lambda: not self.marked_pids(), seconds)

    def saved(self, attempt: int) -> list[int]:
        return [int(event["step"]) for event in self.run.events(attempt) if event["event"] == "saved"]

    def started(self, attempt: int) -> int:
        """The step from which an attempt went on."""
        return self.run.starts()[attempt]


PYTHONS = tuple(f"python{suffix}" for suffix in ("", "3", "3.11", "3.12", "3.13"))


def same_training(one: RunDir, other: RunDir) -> None:
    """Bit for bit: every surviving row, and every tensor of the last checkpoint."""
    import torch

    assert history(one) == history(other)
    left, right = final_weights(one), final_weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def above(process: psutil.Process, generations: int) -> psutil.Process:
    """Above a worker: the server that forked it, torchrun, the agent."""
    for _ in range(generations):
        parent = process.parent()
        assert parent is not None
        process = parent
    return process


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, 9)
