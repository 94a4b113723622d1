"""Runs with the stand-in worker: made, started for real, and ended for certain."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from launchyard.host.folders import log_folder
from launchyard.host.processes import descendants, end_all, end_marked, marked, parent_of
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.backends.base import load_backend, owner_alive
from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.backends.request import Ask, Request
from launchyard.run.records import Job, Shape
from launchyard.run.rundir import RunDir

HERE = Path(__file__).parent


@dataclass(frozen=True)
class PlannedHere:
    """What a backend needs to know of a plan."""

    workers: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    run_id: str = "tiny-abcd"
    request: Request | None = None
    agent: list[str] = field(default_factory=list)

    @property
    def shape(self) -> Shape:
        return Shape(nproc_per_node=self.workers, device="cpu")


RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {"preset": "pythia-14m"},
    "data": {"source": "data", "seq_len": 16},
    "train": {"global_batch_size": 4, "max_steps": 1000, "device": "cpu"},
    "resources": {"max_failures": 3},
}
MODEL = {
    "family": "gpt_neox",
    "vocab_size": 64,
    "dim": 16,
    "n_layers": 1,
    "n_heads": 2,
    "ffn_dim": 64,
    "max_seq_len": 16,
}


def make_run(
    folder: Path, *, recipe: dict[str, Any] | None = None, run_id: str = "tiny-abcd", scheduler: str = "local"
) -> RunDir:
    """A run directory as a launch would leave it, with data that nobody reads."""
    run = RunDir(str(folder / run_id))
    tokens = folder / "tokens"
    tokens.mkdir(exist_ok=True)
    (tokens / "index.json").write_text("{}")
    train = [{"folder": str(tokens), "n_tokens": 999}]
    data = {"train": train, "validation": [], "tokenizer": None, "digest": "d"}
    run.write_text("recipe.yaml", yaml.safe_dump(recipe or RECIPE))
    plan = {"run_id": run_id, "name": "tiny", "max_steps": 1000, "scheduler": scheduler, "cluster": scheduler}
    run.write_json("plan.json", {**plan, "environment": {}, "model": MODEL, "data": data, "device": "cpu"})
    return run


class Standin:
    """One run of the stand-in worker under the real owner, agent and torchrun."""

    def __init__(self, folder: Path, *, run_id: str = "tiny-abcd", scheduler: str = "local") -> None:
        self.run = make_run(folder, run_id=run_id, scheduler=scheduler)
        self.cluster = Cluster(name="here", scheduler=scheduler)
        self.backend: Any = load_backend(scheduler)
        self.pids: set[int] = set()

    def submit(self, *, workers: int = 1, overrides: dict[str, Any] | None = None, **plan: Any) -> Job:
        env = {"PYTHONPATH": str(HERE), "LAUNCHYARD_STANDIN": json.dumps(plan)}
        told = PlannedHere(workers, environment=env)
        told = replace(told, request=self._request(told))
        job: Job = self.backend.submit(self.run, told, overrides or {}, worker_module="standin_worker")
        if job.pid:  # else it waits in a queue
            self.pids.add(job.pid)
        return job

    def _request(self, told: PlannedHere) -> Request | None:
        ask = Ask(
            run_id=self.run.url.rpartition("/")[2],
            run_url=self.run.url,
            shape=told.shape,
            sizes=(1,),
            environment=told.environment,
            python=sys.executable,
            logs=log_folder(),
        )
        request: Request | None = self.backend.request(self.cluster, ask)
        return request

    @property
    def job(self) -> Job:
        """The one that stands for the run now."""
        job = newest_job(self.run)
        assert job is not None
        return job

    def is_alive(self) -> bool:
        return owner_alive(self.run, self.job)

    def wait(self, done: Callable[[], Any], seconds: float = 30.0) -> Any:
        """Poll until something holds; fails with what the run looks like."""
        end = time.monotonic() + seconds
        while not (value := done()):
            assert time.monotonic() < end, self.looks()
            time.sleep(0.02)
        return value

    def looks(self) -> str:
        logs = list(Path(self.run.url).rglob("*.log"))
        return "\n".join(f"--- {path}\n{path.read_text()}" for path in logs)

    def steps(self, attempt: int) -> int:
        return max((row["step"] for row in self.run.rows("steps") if row["attempt"] == attempt), default=0)

    def running(self, attempt: int = 0, steps: int = 3) -> None:
        self.wait(lambda: self.steps(attempt) >= steps)

    def outcome(self, seconds: float = 30.0) -> Any:
        """The run's last word, once its owner is gone too."""
        record = self.wait(self.run.outcome, seconds)
        self.wait(lambda: not self.is_alive())
        return record

    def left(self) -> list[int]:
        """Processes of this run that still live, and its owners."""
        owners = [pid for pid in self.pids if descendants(pid) and not _zombie(pid)]
        return [process.pid for process in marked(self.run.url)] + owners

    def nothing_left(self, seconds: float = 3.0) -> None:
        self.wait(lambda: not self.left(), seconds)

    def worker_pids(self, attempt: int = 0, ranks: int = 1) -> list[int]:
        names = [f"{self.run.attempt_dir(attempt)}/pids/rank-{rank}.json" for rank in range(ranks)]
        self.wait(lambda: all(self.run.exists(name) for name in names))
        return [int(self.run.read_json(name)["pid"]) for name in names]

    def torchrun_pid(self, attempt: int = 0) -> int:
        (worker,) = self.worker_pids(attempt)
        return parent_of(parent_of(worker))  # a server between them forks the workers

    def close(self) -> None:
        if newest_job(self.run) is not None and self.is_alive() and self.backend.TRAITS.scheduled:
            self.backend.cancel(self.run, self.job)
        for pid in self.pids:
            end_all(descendants(pid))
        end_marked(self.run.url)


def _zombie(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)
