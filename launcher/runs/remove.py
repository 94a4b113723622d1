"""Removing runs for good: the run directory, files beside it on this machine, and the entry of the registry."""

from __future__ import annotations

import os
from dataclasses import dataclass

from launchyard.errors import LaunchError, UserError, user_errors
from launchyard.host.folders import job_folder, log_folder, owner_log
from launchyard.launcher.runs.facts import RunFacts
from launchyard.launcher.runs.find import find, find_gone, reach_run
from launchyard.launcher.runs.registry import forget, registered
from launchyard.launcher.runs.state import state_of
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from launchyard.storage.redact import redact


@dataclass(frozen=True)
class Removal:
    """One run that can be removed, and what that takes away. `state`: gone if only its registry entry is left."""

    run_id: str
    url: str
    state: str
    files: int = 0
    bytes: int = 0
    step: int | None = None
    notes: tuple[str, ...] = ()


def plan_removal(name: str) -> Removal:
    """What removing a run takes away. UserError if it is alive, no run, or not ours alone to remove."""
    with user_errors():
        gone = find_gone(name)
    if gone is not None:
        return Removal(gone.run_id, gone.url, "gone")
    run = find(name)
    state = state_of(run)
    if state.state == "unknown":
        raise LaunchError(
            f"job {state.job_id} of {state.run_id} may wait or run: {state.queue}", hint="try again when it does not"
        )
    if state.alive:
        raise UserError(f"{state.run_id} is {state.state}", hint=f"end it first: launch cancel {state.run_id}")
    _check_folder(run, state.run_id)
    with user_errors():
        n_files, n_bytes = files.usage(run.url)
    return Removal(state.run_id, run.url, state.state, n_files, n_bytes, state.checkpoint, tuple(_notes(run)))


def _check_folder(run: RunDir, run_id: str) -> None:
    """UserError unless this folder is a run directory and nothing else: its whole content is going to be removed."""
    where = redact(run.url)
    if not run.exists(layout.RECIPE) or RunFacts(run).plan.get("run_id") != run_id:
        raise UserError(f"{where}: not certainly a run directory: it needs its {layout.RECIPE} and {layout.PLAN}")
    for entry in registered():
        if entry.url.startswith(f"{run.url}/"):
            first = f"remove it first: launch rm {entry.run_id}"
            raise UserError(f"{where}: run {entry.run_id} lies inside", hint=first)
    if not run.local:
        return
    if os.path.islink(run.url):
        raise UserError(f"{where}: a link to {os.path.realpath(run.url)}; name that folder itself")
    here = os.path.realpath(os.getcwd())
    if f"{here}/".startswith(f"{os.path.realpath(run.url)}/"):
        raise UserError(f"{where}: you are inside of it; go to another folder first")


def _notes(run: RunDir) -> list[str]:
    others = [name for name in run.listdir("") if not layout.is_of_run(name)]
    notes = [f"it holds files that are not the run's: {', '.join(others)}"] if others else []
    heirs = [entry.run_id for entry in registered() if _starts_from(entry.url, run)]
    return notes + [f"{run_id} starts from its weights (model.init_from)" for run_id in heirs]


def _starts_from(url: str, run: RunDir) -> bool:
    """Does a run with a local directory take its first weights from another one?"""
    if files.is_remote(url) or url == run.url:
        return False
    from launchyard.training.recipe import stored_recipe

    try:
        model = stored_recipe(RunDir(url)).get("model")
    except (OSError, ValueError):
        return False
    source = model.get("init_from") if isinstance(model, dict) else None
    return isinstance(source, str) and f"{files.normal(source)}/".startswith(f"{run.url}/")


def remove_run(removal: Removal) -> None:
    """Removes a run. LaunchError if a part of it stays: then the command can be given again."""
    run = reach_run(RunDir(removal.url))
    if removal.state != "gone":
        try:
            _remove_folder(run)
        except OSError as error:
            what = f"{error.filename or redact(run.url)}: {error.strerror or redact(str(error))}"
            raise LaunchError(f"{removal.run_id} is removed only in part: {what}") from error
    for entry in registered():
        if entry.run_id == removal.run_id and entry.url == removal.url:
            forget(entry.run_id)


def _remove_folder(run: RunDir) -> None:
    """Manifests first, so that no checkpoint is seen that is half removed; those that make it a run last."""
    for name in run.listdir(layout.CHECKPOINTS):
        if (step := layout.checkpoint_step(name)) is not None:
            run.remove(layout.manifest(step))
    for name in run.listdir(""):
        path = run.path(name)
        if name in (layout.PLAN, layout.RECIPE):  # by which another try knows that it is a run
            continue
        if files.is_remote(path) or not os.path.isdir(path) or os.path.islink(path):
            run.remove(name)
        if run.listdir(name):
            files.remove_folder(path)
    files.remove_folder(run.url)
    if not run.local:
        _remove_beside(run)


def _remove_beside(run: RunDir) -> None:
    """Scripts, code and output of the jobs of a remote run, which lie in the user's own folder."""
    logs = log_folder()
    files.remove(owner_log(run.url, logs))
    folder = job_folder(run.url, logs)
    if not any(entry.url != run.url and job_folder(entry.url, logs) == folder for entry in registered()):
        files.remove_folder(folder)
