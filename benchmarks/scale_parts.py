"""What benchmarks/scale.py measures: one function a part, each given an empty folder and yielding what has grown.

Requests and bytes are counted, so that most figures are the same on any machine; seconds are the least of three.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import scale_manifest
import torch

from launchyard.host.locks import try_lock
from launchyard.launcher.runs.overview.states import overview
from launchyard.launcher.runs.registry import register
from launchyard.launcher.runs.state import state_of
from launchyard.run import events, layout
from launchyard.run.look import look_at
from launchyard.run.records import Job, OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from launchyard.storage.stores import registry, s3
from launchyard.training.checkpoint.checkpointer import Checkpointer
from launchyard.training.checkpoint.commit import Identity, check_owner
from launchyard.training.checkpoint.state import Shard
from launchyard.training.data.cache import cache_files
from launchyard.training.distributed import read_world
from tests.support.store import Bucket, S3Server

IDENTITY = Identity(model={"dim": 4}, data_digest="d", recipe_hash="r", versions={}, run_id="made")
EVERY = 10  # steps between checkpoints


@dataclass(frozen=True)
class Grown:
    """A figure at each size."""

    name: str
    unit: str
    sizes: Sequence[int]
    values: Sequence[float]

    @property
    def ratio(self) -> float:
        """For ten times the size, by the first and the last."""
        if not self.values[0] or not self.values[-1]:
            return math.nan
        slope = math.log(self.values[-1] / self.values[0]) / math.log(self.sizes[-1] / self.sizes[0])
        return 10.0**slope

    def to_json(self) -> dict[str, Any]:
        points = {str(size): float(f"{value:.4g}") for size, value in zip(self.sizes, self.values, strict=True)}
        return {"name": self.name, "unit": self.unit, "at": points, "ratio": round(self.ratio, 2)}


def least_seconds(action: Callable[[], object], times: int = 3) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return min(found)


# -- made runs -------------------------------------------------------------------------------------------------------
def job_of(attempt: int) -> Job:
    return Job(
        attempt=attempt, backend="local", job_id="1", host="elsewhere", pid=1, pid_started=0.0, created=float(attempt),
        nnodes=1, nproc_per_node=1, device="cpu",
    )  # fmt: skip


def make_run(url: str, *, attempts: int, checkpoints: int) -> RunDir:
    """A run that was started `attempts` times and has saved every EVERY steps, as its processes leave it: its
    checkpoints are the checkpointer's own, with a tensor of a few numbers."""
    run = RunDir(url)
    run.write_json(layout.PLAN, {"run_id": "made", "name": "made", "scheduler": "local", "max_steps": 10**6})
    step = 0
    for attempt in range(attempts):
        run.claim_attempt(job_of(attempt))
        told = [{"event": name, "step": step, "time": float(step)} for name in (events.PROCESS_STARTED, events.STARTED)]
        rows = []
        saver = saver_of(run, attempt)
        for _ in range(max(1, checkpoints // attempts)):
            step += EVERY
            told.append({"event": events.SAVED, "step": step, "time": float(step), "kind": "permanent"})
            rows.append(row_of(step, attempt))
            saver.save(step, shards_of(), {"step": step}, "permanent")
        saver.wait(must_succeed=True)
        told.append({"event": events.FINISHED, "step": step, "time": float(step)})
        write_lines(run, layout.events(attempt), told)
        write_lines(run, layout.rows(layout.STEPS, attempt), rows)
        record = OutcomeRecord(
            outcome="stopped", reason="stop", attempt=attempt, step=step, time=float(step),
            checkpoint=run.checkpoint_dir(step),
        )  # fmt: skip
        run.write_outcome(record)
    run.write_outcome(record, of_run=True)
    return run


def saver_of(run: RunDir, attempt: int, *, cleans: bool = False) -> Checkpointer:
    world = replace(read_world(), attempt=attempt)
    saver = Checkpointer(run, world, IDENTITY, keep=None, background=False, on_event=lambda name, **facts: None)
    if not cleans:  # what is measured is not the making
        saver.clean_aside = lambda clean: None  # type: ignore[method-assign]
    return saver


def shards_of() -> dict[str, Shard]:
    return {"model.w": Shard((4,), (0,), torch.zeros(4), writes=True)}


def row_of(step: int, attempt: int) -> dict[str, Any]:
    facts = {"step": step, "attempt": attempt, "time": float(step), "loss": 1.0, "tokens": 10, "step_seconds": 1.0}
    return {**facts, "tokens_per_second": 10.0}


def write_lines(run: RunDir, stem: str, lines: list[dict[str, Any]]) -> None:
    name = layout.grown(stem) if run.local else layout.grown_part(stem, 0)
    run.write_text(name, "".join(f"{json.dumps(line)}\n" for line in lines))


# -- counting --------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def counted_requests() -> Iterator[list[str]]:
    """Every request that goes to S3 inside, by its method."""
    heard: list[str] = []
    real = s3.send_request

    def send(fs: Any, method: str, **given: Any) -> Any:
        heard.append(f"{method} {given.get('Key') or given.get('Prefix')}")
        return real(fs, method, **given)

    s3.send_request = send
    try:
        yield heard
    finally:
        s3.send_request = real


@contextlib.contextmanager
def counted_manifests() -> Iterator[list[int]]:
    """The bytes of every read of a manifest inside."""
    heard: list[int] = []
    real = files.read

    def read(path: str, start: int = 0, length: int | None = None) -> bytes:
        raw = real(path, start, length)
        if path.endswith(layout.MANIFEST):
            heard.append(len(raw))
        return raw

    files.read = read
    try:
        yield heard
    finally:
        files.read = real


@contextlib.contextmanager
def an_s3_server(folder: Path) -> Iterator[Bucket]:
    server = S3Server(folder)
    server.start()
    bucket = Bucket(server, "launchyard", server.endpoint)
    before = dict(os.environ)
    os.environ.update(bucket.environment)
    try:
        yield bucket
    finally:
        os.environ.clear()
        os.environ.update(before)
        registry._stores.clear()
        server.kill()


# -- parts -----------------------------------------------------------------------------------------------------------
def manifest(folder: Path) -> Iterator[Grown]:
    """The manifest of 70B parameters with moments: a save and a resume, at simulated ranks."""
    sizes = scale_manifest.RANKS
    found = [scale_manifest.measure(str(folder / str(ranks)), ranks) for ranks in sizes]
    for name, unit in scale_manifest.FIGURES.items():
        yield Grown(name, unit, sizes, [one[name] for one in found])


def resume(folder: Path) -> Iterator[Grown]:
    """Manifests that a resume and the first save after it read."""
    sizes = (10, 100)
    beginnings, whole = [], []
    for count in sizes:
        run = make_run(str(folder / str(count)), attempts=1, checkpoints=count)
        size = files.size(run.path(layout.manifest(EVERY)))
        run.claim_attempt(job_of(1))
        with counted_manifests() as heard:
            saver = saver_of(run, 1, cleans=True)
            assert saver.load_newest(shards_of()) is not None
            saver.save((count + 1) * EVERY, shards_of(), {}, "permanent")
            saver.wait(must_succeed=True)
        whole.append(sum(one >= size - 64 for one in heard))
        beginnings.append(len(heard) - whole[-1])
    yield Grown("manifests read whole", "manifests", sizes, whole)
    yield Grown("beginnings of manifests read", "reads", sizes, beginnings)


def status(folder: Path) -> Iterator[Grown]:
    """Requests of `launch status RUN` in S3, by attempts and by checkpoints, of a run that is over or lives."""
    with an_s3_server(folder) as bucket:
        for what, sizes in (("attempts", (3, 30)), ("checkpoints", (10, 100))):
            over, alive = [], []
            for size in sizes:
                attempts = size if what == "attempts" else 2
                checkpoints = size if what == "checkpoints" else 30
                run = make_run(f"{bucket.url}/{what}-{size}", attempts=attempts, checkpoints=checkpoints)
                over.append(requests_of_status(run, checkpoints * EVERY))
                run.remove(layout.OUTCOME)
                run.write_json(layout.heartbeat(attempts - 1), {"time": time.time(), "host": "elsewhere", "pid": 1})
                written = run.events(attempts - 1)[:-1]
                write_lines(run, layout.events(attempts - 1), written)  # it has not finished
                alive.append(requests_of_status(run, checkpoints * EVERY))
            yield Grown(f"launch status RUN, over, {what}", "requests", sizes, over)
            yield Grown(f"launch status RUN, alive, {what}", "requests", sizes, alive)


def requests_of_status(run: RunDir, checkpoint: int) -> int:
    with counted_requests() as heard:
        state = state_of(look_at(RunDir(run.url)))
    assert state.checkpoint == checkpoint, state
    if os.environ.get("SHOW"):
        print("\n".join([state.state, *heard]))
    return len(heard)


def runs(folder: Path) -> Iterator[Grown]:
    """`launch status` of all runs of an account that are over, on this disk."""
    sizes = (1000, 10_000)
    seconds, first, cpu = [], [], []
    for size in sizes:
        os.environ["XDG_STATE_HOME"] = str(folder / f"state-{size}")
        os.environ["XDG_CACHE_HOME"] = str(folder / f"cache-{size}")
        for number in range(size):
            finished_run(str(folder / f"runs-{size}"), f"made-{number:05d}")
        first.append(least_seconds(overview, times=1))
        began = time.process_time()
        seconds.append(least_seconds(overview, times=2))
        cpu.append((time.process_time() - began) / 2)
        assert [state.state for state in overview()] == ["completed"] * size
    yield Grown("launch status, the first time", "seconds", sizes, first)
    yield Grown("launch status, then", "seconds", sizes, seconds)
    yield Grown("launch status, then", "CPU s", sizes, cpu)


def finished_run(folder: str, run_id: str) -> None:
    run = RunDir(f"{folder}/{run_id}")
    run.write_json(layout.PLAN, {"run_id": run_id, "name": "made", "scheduler": "local", "max_steps": 100})
    run.claim_attempt(job_of(0))
    write_lines(run, layout.events(0), [{"event": events.STARTED, "step": 0, "time": 1.0}])
    write_lines(run, layout.rows(layout.STEPS, 0), [row_of(step, 0) for step in (99, 100)])
    record = OutcomeRecord(outcome="completed", reason="done", attempt=0, step=100, time=1.0)
    run.write_outcome(record)
    run.write_outcome(record, of_run=True)
    register(run_id, "made", run.url)


def owner(folder: Path) -> Iterator[Grown]:
    """The look of a commit at whether another attempt owns the run, in S3."""
    sizes = (10, 100)
    counts = []
    with an_s3_server(folder) as bucket:
        for attempts in sizes:
            run = RunDir(f"{bucket.url}/owner-{attempts}")
            for attempt in range(attempts):
                run.claim_attempt(job_of(attempt))
            with counted_requests() as heard:
                check_owner(run, attempts - 1)
            counts.append(len(heard))
    yield Grown("owner check", "requests", sizes, counts)


def cache(folder: Path) -> Iterator[Grown]:
    """Room for one more chunk in a cache of many, under the lock of the machine."""
    sizes = (100, 1000, 10_000)
    seconds = []
    for size in sizes:
        place = str(folder / str(size))
        source, _ = cache_files.enter_source(place, "s3://somewhere/data")
        for number in range(size):
            with open(f"{source}/{number:06d}.bin", "wb") as file:
                file.truncate(1000)
        seconds.append(least_seconds(partial(one_more, place, source)))
    yield Grown("reservation of a chunk", "seconds", sizes, seconds)


def one_more(place: str, source: str) -> None:
    part = f"{source}/more.part"
    file = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
    try_lock(file)
    cache_files.reserve(place, file, 1000, quota=1 << 40, keep=(), urgent=True)
    os.close(file)
    os.unlink(part)


PARTS: dict[str, Callable[[Path], Iterator[Grown]]] = {
    "manifest": manifest,
    "resume": resume,
    "status": status,
    "runs": runs,
    "owner": owner,
    "cache": cache,
}
