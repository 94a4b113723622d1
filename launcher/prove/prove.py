"""Steps of a run, made again from its checkpoints on this machine, and compared with the rows that it has of them."""

from __future__ import annotations

import contextlib
import math
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import cast

from launchyard.errors import LaunchError, StartedError, UserError
from launchyard.launcher.backends.base import load_backend
from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.prove.scratch import copy_at
from launchyard.launcher.runs.facts import RunFacts
from launchyard.launcher.submit.resume import ReadyToResume, make_ready
from launchyard.run import layout
from launchyard.run.checkpoints import RunCheckpoints
from launchyard.run.records import Job
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject

WHOLE = ("step", "lr", "tokens_seen", "labels", "data_hash")  # the same on any machine
ROUNDED = ("loss", "grad_norm", "reward_margin")  # to the bit on the same workers, else to rounding
TOLERANCE = {"fp32": 1e-4}
COARSE = 2e-2
MOST_WORKERS = 16  # of a CPU, at a time; more of them are made again by one
POLL_SECONDS = 0.1
# What a copy leaves out: it trains, and that is all.
QUIET = {
    "metrics.trackers": [],
    "metrics.prometheus": False,
    "metrics.grad_norms": None,
    "validation.every_steps": None,
    "validation.every_epochs": None,
    "validation.at_start": False,
    "validation.sanity_batches": None,
    "validation.sample": None,
    "checkpoint.export": False,
    "checkpoint.keep_best": None,
    "early_stopping": None,
    "profile": None,
    "notify": None,
    "train.max_time": None,
    "resources.nodes": 1,
    "resources.max_failures": 0,
}


@dataclass(frozen=True)
class Stretch:
    """Steps start + 1 to stop, which one attempt made. exact: they are made again by as many workers of its kind."""

    start: int
    stop: int
    attempt: int
    workers: int
    exact: bool


@dataclass(frozen=True)
class Proof:
    """A stretch that was made again, and what differs in it: lines for people."""

    stretch: Stretch
    seconds: float
    differences: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.differences

    def to_json(self) -> JsonObject:
        return {**asdict(self.stretch), "seconds": self.seconds, "holds": self.holds, "differences": self.differences}


def stretches(run: RunDir, *, points: int, steps: int, seed: int) -> list[Stretch]:
    """Some of the run's checkpoints, and its beginning, each with the steps behind it. UserError if there are none."""
    starts = [0, *sorted(RunCheckpoints(run).counting())]
    wanted = {step for start in starts for step in range(start + 1, start + steps + 1)}
    made_by = {int(row["step"]): int(row["attempt"]) for row in run.rows(layout.STEPS) if int(row["step"]) in wanted}
    found = []
    for start in starts:
        attempts = {made_by.get(step) for step in range(start + 1, start + steps + 1)}
        attempt = attempts.pop()
        if attempt is not None and not attempts:  # else a resume lies between, which may have changed the recipe
            found.append(_stretch(run, start, start + steps, attempt))
    if not found:
        raise UserError(
            f"{RunFacts(run).run_id}: no checkpoint has {steps} steps behind it that one attempt made",
            hint="try --steps 1; launch checkpoints RUN lists what there is",
        )
    return sorted(random.Random(seed).sample(found, min(points, len(found))), key=lambda one: one.start)


def _stretch(run: RunDir, start: int, stop: int, attempt: int) -> Stretch:
    job = run.job(attempt)
    workers = job.nnodes * job.nproc_per_node
    here = job.device == "cpu" and workers <= MOST_WORKERS
    return Stretch(start, stop, attempt, workers if here else 1, exact=here)


def prove(run: RunDir, stretch: Stretch, *, report: Callable[[str], None], timeout_seconds: float) -> Proof:
    """Make one stretch again. LaunchError if that cannot be done; the run itself is only read."""
    began = time.monotonic()
    expected = _rows_of(run, stretch.attempt, stretch)
    with _copied(run, stretch) as copy:
        again = _made_again(copy, stretch, report, deadline=began + timeout_seconds)
    precision = str((run.read_plan().get("precision")) or "fp32")
    tolerance = 0.0 if stretch.exact else TOLERANCE.get(precision, COARSE)
    differences = [
        line
        for step in range(stretch.start + 1, stretch.stop + 1)
        for line in compare(expected[step], again[step], tolerance)
    ]
    return Proof(stretch, round(time.monotonic() - began, 3), differences)


def _rows_of(run: RunDir, attempt: int, stretch: Stretch) -> dict[int, JsonObject]:
    """Those of the steps of a stretch that an attempt has written, by step."""
    rows = run.attempt_rows(layout.STEPS, attempt)
    return {int(row["step"]): row for row in rows if stretch.start < int(row["step"]) <= stretch.stop}


def compare(row: JsonObject, again: JsonObject, tolerance: float) -> Iterator[str]:
    """What differs. tolerance: relative, of what rounding may change; 0: nothing may."""
    for key in (*WHOLE, *ROUNDED):
        one = row.get(key)
        other = again.get(key)
        if one == other:
            continue
        if key not in ROUNDED or one is None or other is None or not math.isclose(one, other, rel_tol=tolerance):
            yield f"step {row['step']}: {key} is {other}, and was {one}"


@contextlib.contextmanager
def _copied(run: RunDir, stretch: Stretch) -> Iterator[RunDir]:
    folder = tempfile.mkdtemp(prefix="launchyard-prove-")
    try:
        yield copy_at(run, stretch.start, stretch.attempt, f"{folder}/run")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _made_again(
    copy: RunDir, stretch: Stretch, report: Callable[[str], None], *, deadline: float
) -> dict[int, JsonObject]:
    """The rows of the steps, from an attempt in the copy, which ends when it has made them."""
    changes = {**QUIET, "validation.tasks": [], "resources.nproc_per_node": stretch.workers}
    if not stretch.exact:
        changes["train.device"] = "auto"
    ready: ReadyToResume = make_ready(copy, changes, from_step=stretch.start, cluster=FIRST)
    try:
        job = ready.submit(report=report)
    except StartedError as error:  # Ctrl-C: nobody else ends what has been started
        job = cast("Job", error.job)
        load_backend(job.backend).cancel(copy, job)
        raise
    try:
        while True:
            rows = _rows_of(copy, job.attempt, stretch)
            if stretch.stop in rows:
                return rows
            _refuse_end(copy, job)
            if time.monotonic() > deadline:
                raise LaunchError(f"step {stretch.stop} was not reached in time; --timeout gives it longer")
            time.sleep(POLL_SECONDS)
    finally:
        load_backend(job.backend).cancel(copy, job)


def _refuse_end(copy: RunDir, job: Job) -> None:
    """LaunchError with its words if the attempt is over."""
    ended = copy.outcome(job.attempt)
    if ended is not None and ended.outcome == "failed":
        raise LaunchError(f"the steps could not be made again: {ended.message}")
