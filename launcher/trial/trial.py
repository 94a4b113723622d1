"""One trial of a recipe: a run that is thrown away, made as a launch makes it, of which some steps are run."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.backends.base import load_backend
from launchyard.launcher.backends.cluster import Cluster, load_cluster, reach_storage, recipe_defaults
from launchyard.launcher.backends.hardware import free_memory
from launchyard.launcher.plan.plan import Plan
from launchyard.launcher.recipe.load import UncheckedRecipe, read_recipe
from launchyard.launcher.submit.code import CodeSnapshot, take_snapshot
from launchyard.launcher.submit.launch import NewFolder, Ready, prepare_data, ready_at, write_run
from launchyard.launcher.trial.child import ChildEnd, TrialLimits, run_child
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.training.trial.spec import RESULT, TRIAL, Trial, TrialResult

TrialVerdict = Literal["fits", "no memory", "too slow"]
NOWHERE = "/nonexistent/launchyard-trial"  # of a plan that is only looked at
# What a trial leaves out: it makes steps, each as large as any, and that is all.
ONLY_STEPS: JsonObject = {
    "name": "trial",
    "after": None,
    "notify": None,
    "metrics.trackers": [],
    "metrics.prometheus": False,
    "validation.every_steps": None,
    "validation.at_start": False,
    "validation.sample": None,
    "validation.tasks": [],
    "checkpoint.export": False,
    "checkpoint.every_steps": None,
    "checkpoint.every_minutes": None,
    "checkpoint.keep_best": None,
    "early_stopping": None,
    "stability": {},
    "train.max_time": None,
    "train.batch_size_ramp": [],
    "data.seq_len_ramp": [],
}
SPARE_STEPS = 2  # behind the last one, so that no worker comes to the end of its run, where it saves
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "alloc_failed",
    "could not create a memory",
    "unable to mmap",
)
_NO_MEMORY_TYPES = ("OutOfMemoryError", "MemoryError")
_NEAR = 0.7  # a process that dies without a word while it holds this share of its limit has died of it


@dataclass(frozen=True)
class TrialOutcome:
    """Of a trial: its rows, one a step, as a run has them. peak: bytes of one worker."""

    verdict: TrialVerdict
    plan: Plan
    rows: Sequence[JsonObject]
    peak: int | None = None
    runtime: int | None = None
    nonfinite: bool = False
    cpu_seconds: Sequence[float] = ()  # of one worker, a step
    tensors: int | None = None  # bytes of their storages, where they were counted


@dataclass(frozen=True)
class TrialPlace:
    """The recipe that is tried, and where."""

    recipe: UncheckedRecipe
    cluster: Cluster
    code: CodeSnapshot

    def ready(self, changes: Mapping[str, object], url: str) -> Ready:
        """A launch of it with these changes; the text that it reads is tokenized if it is not."""
        loaded = self.recipe.check({**ONLY_STEPS, **changes})
        return prepare_data(ready_at(RunDir(url), loaded, self.cluster, run_id="trial", code=self.code))


def trial_place(recipe: str, *, cluster: str, overrides: JsonObject, command: str) -> TrialPlace:
    """The recipe on this machine; UserError where a scheduler gives the machines. command: who asks."""
    found = load_cluster(cluster)
    if load_backend(found.scheduler).TRAITS.scheduled:
        raise UserError(
            f"{command} tries a recipe on the machine that it runs on, and {found.name} gives its machines to jobs",
            hint=f"run it in an allocation, on the node: salloc …, then {command} RECIPE there, without --cluster",
        )
    reach_storage(found)
    unchecked = read_recipe(recipe, defaults=recipe_defaults(found)).changed(overrides)
    return TrialPlace(unchecked, found, take_snapshot(Path.cwd()))


def allowed_memory(asked: int | None = None) -> int:
    """Bytes that trials may take of this machine; never so much that it would have to end other processes."""
    free = free_memory()
    return free if asked is None else min(asked, free)


def run_trial(
    place: TrialPlace,
    changes: Mapping[str, object],
    trial: Trial,
    *,
    limits: TrialLimits,
    enough: Callable[[Sequence[JsonObject]], bool] = lambda rows: False,
) -> TrialOutcome:
    """Make the steps of a trial. `enough`: asked with the rows so far, True ends it. LaunchError for other failures."""
    changes = {**changes, "train.max_steps": trial.n_steps + SPARE_STEPS}
    with _scratch() as folder:
        ready = place.ready(changes, f"{folder}/run")
        run = ready.run
        write_run(ready, NewFolder(run))
        run.write_json(TRIAL, trial.model_dump(mode="json"))
        shape = ready.plan.shape
        ended = run_child(
            run, shape, ready.plan.environment, limits=limits, enough=lambda: enough(list(_rows(run, trial)))
        )
        return _outcome(run, ready.plan, ended, trial, limits)


@contextmanager
def _scratch() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="launchyard-trial-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rows(run: RunDir, trial: Trial) -> Iterator[JsonObject]:
    return (row for row in run.attempt_rows(layout.STEPS, 0) if row["step"] <= trial.n_steps)


def _outcome(run: RunDir, plan: Plan, ended: ChildEnd, trial: Trial, limits: TrialLimits) -> TrialOutcome:
    rows = list(_rows(run, trial))
    errors = run.errors(0)
    found = TrialResult.model_validate(run.read_json(RESULT)) if run.exists(RESULT) else None
    peak = found.peak if found else ended.peak // plan.nproc_per_node or None
    if ended.why == "time":
        return TrialOutcome("too slow", plan, rows, peak)
    if died_of_memory(ended, errors, limits):
        return TrialOutcome("no memory", plan, rows, peak)
    if any(error["type"] == "NonFiniteError" for error in errors):
        return TrialOutcome("fits", plan, rows, peak, nonfinite=True)
    if found is None and ended.why != "enough":
        raise LaunchError(f"a trial of the recipe failed: {_words(run, errors, ended)}")
    if found is None:
        return TrialOutcome("fits", plan, rows, peak)
    return TrialOutcome("fits", plan, rows, peak, found.runtime, cpu_seconds=found.cpu_seconds, tensors=found.tensors)


def died_of_memory(ended: ChildEnd, errors: Sequence[JsonObject], limits: TrialLimits) -> bool:
    """By us, by the kernel, or by an allocation that failed."""
    if ended.why:
        return ended.why == "memory"
    if ended.code == -signal.SIGKILL:
        return True
    for error in errors:
        text = str(error["message"]).lower()
        if error["type"] in _NO_MEMORY_TYPES or any(sign in text for sign in _NO_MEMORY):
            return True
    silent = ended.code != 0 and not errors
    return silent and limits.memory is not None and ended.peak > _NEAR * limits.memory


def _words(run: RunDir, errors: Sequence[JsonObject], ended: ChildEnd) -> str:
    if errors:
        return str(errors[0]["message"])
    logs = [f"{layout.logs_folder(0)}/{layout.rank_log(0)}", layout.JOB_LOG]  # the second until it has the first
    lines = [run.read_text(log).strip().splitlines()[-3:] for log in logs if run.exists(log)]
    return next((" / ".join(tail) for tail in lines if tail), f"exit code {ended.code}")
