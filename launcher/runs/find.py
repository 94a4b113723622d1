"""Finding a run by its id, part of an id, name, `latest`, path or URL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from launchyard.errors import UserError, user_errors
from launchyard.launcher.runs.facts import RunFacts
from launchyard.launcher.runs.registry import Registered, registered
from launchyard.run.layout import PLAN
from launchyard.run.look import look_at
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from launchyard.storage.files import typed_path

NEWEST = ("latest", "last")  # words for the newest run; a recipe cannot have such a name


# -- finding ---------------------------------------------------------------------------------------------------------
def find(run: str) -> RunDir:
    """A run by id, the beginning or the end of its id, its name (the newest of that name), `latest`, path or URL.

    UserError if there is none, or more than one.
    """
    with user_errors():
        return _find(run, lambda found: found)


def find_to_look(run: str) -> RunDir:
    """The same for one look, with few requests: see run/look.py."""
    with user_errors():
        return _find(run, look_at)


def _find(run: str, opened: Callable[[RunDir], RunDir]) -> RunDir:
    if _is_place(run):
        return _at(run, opened)
    entries = registered()
    entry = _entry(run, entries)
    if entry is not None:
        return _there(entry, opened)
    if os.path.isdir(run):
        return _at(run, opened)
    raise UserError(f"{run}: no such run{_near(run, entries)}", hint="launch status shows all; a path or URL works too")


def find_gone(run: str) -> Registered | None:
    """The entry of a run whose directory is gone, by all that `find` takes; None if the run is there, or unknown."""
    entries = registered()
    if not _is_place(run):
        entry = _entry(run, entries)
    else:
        url = RunDir(typed_path(run)).url
        entry = next((entry for entry in entries if entry.url == url), None)
    return entry if entry is not None and not entry.is_of(entry.open()) else None


def reach_run(run: RunDir) -> RunDir:
    """The same run, once this process reaches stores as the run's cluster does: after another run was looked at."""
    entry = next((entry for entry in registered() if entry.url == run.url), None)
    return run if entry is None else entry.open()


def _is_place(run: str) -> bool:
    return "://" in run or os.sep in run or run in (".", "..")


def _entry(run: str, entries: list[Registered]) -> Registered | None:
    if run in NEWEST:
        return _newest(entries, "no run has been launched from this account yet")
    for matches in _matches(run, entries):
        if len(matches) > 1:
            listed = ", ".join(entry.run_id for entry in matches)
            raise UserError(f"{run}: fits more than one run: {listed}", hint="write a little more of its id")
        if matches:
            return matches[0]
    return None


def _matches(run: str, entries: list[Registered]) -> Iterator[list[Registered]]:
    """Entries that fit, the strictest way first."""
    yield [entry for entry in entries if entry.run_id == run]
    named = [entry for entry in entries if entry.name == run]
    yield next(([entry] for entry in reversed(named) if entry.is_there()), named[-1:])
    yield [entry for entry in entries if entry.run_id.startswith(run)]
    yield [entry for entry in entries if entry.run_id.rsplit("-", 1)[-1] == run]
    yield [entry for entry in entries if entry.run_id.rsplit("-", 1)[-1].endswith(run)]


def _newest(entries: list[Registered], otherwise: str) -> Registered:
    there = next((entry for entry in reversed(entries) if entry.is_there()), None)
    if there is None:
        raise UserError(otherwise, hint="launch --local starts one")
    return there


def _at(url: str, opened: Callable[[RunDir], RunDir]) -> RunDir:
    run = opened(reach_run(RunDir(typed_path(url))))
    if not run.exists(PLAN):
        raise UserError(f"{url}: no run there (it has no plan.json)")
    return run


def _there(entry: Registered, opened: Callable[[RunDir], RunDir]) -> RunDir:
    run = opened(entry.open())
    if not entry.is_of(run):
        raise UserError(f"{entry.run_id}: its run directory {entry.url} is gone")
    return run


def _near(run: str, entries: list[Registered]) -> str:
    from launchyard.launcher.recipe.hints import nearest

    names = list(dict.fromkeys([*(entry.run_id for entry in entries), *(entry.name for entry in entries)]))
    near = nearest(run, names, cutoff=0.5)
    if near:
        return f"; did you mean {near}?"
    return f"; the newest are {', '.join(entry.run_id for entry in entries[-3:])}" if entries else ""


def of_cluster(name: str, *, newest: int = 10) -> Iterator[RunDir]:
    """The newest registered runs of a place whose directories are local, newest first."""
    for entry in reversed(registered()):
        if newest and not files.is_remote(entry.url) and RunFacts(RunDir(entry.url)).plan.get("cluster") == name:
            newest -= 1
            yield RunDir(entry.url)
