"""A run in S3 behind a proxy of faults, data and all: begun, stopped, copied there; and the same undisturbed."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.storage import files, options
from launchyard.storage.shards import read_manifest, verify
from launchyard.training.data.prepare.writer import SplitWriter
from launchyard.training.recipe import Recipe
from launchyard.training.spec import DataSpec, Storage, TokenSource, Workload
from tests.support.faults import Request
from tests.support.small_runs import MODEL, VOCAB, final_weights, history, run_workers, start_workers
from tests.support.store import Bucket

STEPS, BEGUN, EVERY = 30, 10, 5
RECIPE: dict[str, Any] = {
    "name": "faults",
    "model": MODEL,
    "resources": {"max_failures": 4},
    "data": {"source": "x", "seq_len": 16, "seed": 3},
    "train": {"max_steps": STEPS, "global_batch_size": 12, "seed": 1, "device": "cpu"},
    "optimizer": {"lr": 3e-3},
    "schedule": {"warmup_steps": 4},
    "checkpoint": {"every_steps": EVERY, "keep": 2, "every_minutes": None},
    "metrics": {"prometheus": False},
}


def write_data(url: str) -> DataSpec:
    """As `launch prepare` writes it, with digests: eleven small chunks."""
    walk = (np.cumsum(np.random.default_rng(5).integers(0, 3, 3301)) % VOCAB).astype(np.uint16)
    sources = {}
    for name, part in (("train", walk[:3001]), ("validation", walk[3001:])):
        writer = SplitWriter(f"{url}/{name}", chunk_tokens=300, dtype="uint16", eos_id=VOCAB - 1)
        writer.add(part)
        writer.finish()
        sources[name] = TokenSource(folder=f"{url}/{name}", n_tokens=len(part))
    return DataSpec(train=(sources["train"],), validation=(sources["validation"],), tokenizer=None, digest="faults")


def write_plan(run: RunDir, data: DataSpec, storage: Storage) -> None:
    recipe = Recipe.model_validate(RECIPE)
    fields = recipe.model.model_dump(exclude_none=True)
    workload = Workload(run_id="faults-run", name="faults", model=fields, data=data, storage=storage)
    run.write_text("recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    plan = {**workload.model_dump(mode="json"), "max_steps": STEPS, "scheduler": "local", "cluster": "local"}
    run.write_json("plan.json", {**plan, "environment": {}, "device": "cpu"})


@dataclass(frozen=True)
class Origin:
    """On this disk: a run that was stopped after some steps, and what it comes to when nothing disturbs it."""

    begun: RunDir
    rows: list[tuple[Any, ...]]
    weights: dict[str, torch.Tensor]


def make_origin(folder: Path) -> Origin:
    data = write_data(str(folder / "data"))
    begun, whole = RunDir(str(folder / "begun")), RunDir(str(folder / "whole"))
    for run in (begun, whole):
        write_plan(run, data, Storage(cache=str(folder / "cache")))
    run_workers(whole, 1)
    processes = start_workers(begun, 1)
    try:
        wait_for(lambda: len(list(begun.rows("steps"))) >= BEGUN)
        processes[0].send_signal(signal.SIGUSR1)
        assert processes[0].wait(60) == 0
    finally:
        end(processes)
    assert committed_steps(begun)[-1] < STEPS, "it was stopped in time"
    return Origin(begun, history(whole), final_weights(whole))


@dataclass
class Spell:
    """Requests of this kind, for some seconds from the first one on."""

    method: str
    key: str
    seconds: float
    began: float | None = None

    def __call__(self, request: Request) -> bool:
        if request.method != self.method or re.search(self.key, request.key) is None:
            return False
        self.began = self.began or time.monotonic()
        return time.monotonic() - self.began < self.seconds


# Everywhere that a worker touches a store.
PLACES = {
    "index": ("GET", r"train/index\.json$"),
    "chunk": ("GET", r"train/.*\.bin$"),
    "manifest": ("GET", r"manifest\.json$"),
    "shards": ("GET", r"\.safetensors$"),
    "upload": ("PUT", r"\.safetensors$"),
    "commit": ("PUT", r"manifest\.json$"),
    "latest": ("PUT", r"latest\.json$"),
    "rows": ("PUT", r"metrics/"),
    "events": ("PUT", r"events-"),
    "retention": ("DELETE", r"checkpoints/"),
    "curve": ("PUT", r"loss\.svg$"),
    "outcome": ("PUT", r"outcome\.json$"),
}


@dataclass
class Remote:
    """A copy of the begun run in a fresh bucket. What is asked here goes to the server itself, past the proxy."""

    bucket: Bucket
    origin: Origin
    folder: Path
    retry_seconds: float = 60.0
    processes: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        files.set_store_options(options.StoreOptions(endpoint_url=self.bucket.endpoint))
        self.run = RunDir(f"{self.bucket.url}/runs/faults")
        begun = Path(self.origin.begun.url)
        for path in sorted(begun.rglob("*")):
            if path.is_file():
                files.write(self.run.path(str(path.relative_to(begun))), path.read_bytes())
        job = self.run.read_json("attempts/0000/job.json")  # its owner is gone, and that can be told
        self.run.write_json("attempts/0000/job.json", {**job, "host": socket.gethostname()})
        self.data = write_data(f"{self.bucket.url}/data")
        self.set_retry_seconds(self.retry_seconds)

    def set_retry_seconds(self, seconds: float) -> None:
        write_plan(self.run, self.data, Storage(retry_seconds=seconds, cache=str(self.folder / "cache")))

    @property
    def attempt(self) -> int:
        return self.run.attempts()[-1]

    def start(self, nproc: int = 1, overrides: dict[str, Any] | None = None) -> None:
        self.processes = start_workers(self.run, nproc, overrides)

    def wait(self, seconds: float = 150) -> list[int]:
        return [process.wait(seconds) for process in self.processes]

    def train(self, nproc: int = 1, overrides: dict[str, Any] | None = None) -> None:
        """An attempt, to its end."""
        self.start(nproc, overrides)
        codes = self.wait()
        errors = [error["traceback"] for error in self.run.errors(self.attempt)]
        assert codes == [0] * nproc, "\n".join(errors)

    def events(self, *names: str, attempt: int | None = None) -> list[dict[str, Any]]:
        found = self.run.events(self.attempt if attempt is None else attempt)
        return [event for event in found if event["event"] in names]

    def saw_event(self, *names: str) -> bool:
        return bool(self.events(*names))

    def is_whole(self) -> None:
        """Every checkpoint verifies, and nothing is left of what did not become one."""
        named = {"checkpoints/latest.json"}
        for step in committed_steps(self.run):
            folder = self.run.checkpoint_dir(step)
            manifest = read_manifest(self.run.path(folder))
            assert list(verify(self.run.path(folder), manifest)) == []
            named |= {f"{folder}/{name}" for name in (*manifest.files, "manifest.json")}
        there = {key.removeprefix("runs/faults/") for key in self.bucket.objects("runs/faults/checkpoints/")}
        assert there == named
        assert self.bucket.uploads() == []

    def is_exact(self) -> None:
        """The undisturbed run, step for step and bit for bit."""
        record = self.run.outcome(self.attempt)
        assert record is not None and record.outcome == "completed"
        assert history(self.run) == self.origin.rows
        for key, tensor in final_weights(self.run).items():
            assert torch.equal(tensor, self.origin.weights[key]), key

    def close(self) -> None:
        end(self.processes)
        files.set_store_options(options.StoreOptions())


def wait_for(done: Callable[[], Any], seconds: float = 60.0) -> Any:
    until = time.monotonic() + seconds
    while not (value := done()):
        assert time.monotonic() < until, f"not within {seconds:.0f} s"
        time.sleep(0.05)
    return value


def end(processes: list[Any]) -> None:
    """What a test has started, and only that."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
