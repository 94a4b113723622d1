"""The record of a sweep: sweep.yaml in its own folder, and one small file for each sweep in the user's state folder.

It is written before the first run is submitted and never changed: all else that is known of a sweep is in its runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from launchyard.errors import NothingRunsError, UserError, user_errors
from launchyard.host import locks
from launchyard.host.folders import user_state_folder
from launchyard.launcher.runs.registry import known_ids, new_run_id, registered
from launchyard.run.layout import PLAN
from launchyard.run.rundir import RunDir
from launchyard.storage import files, local
from launchyard.storage import options as storage_options
from launchyard.storage.files import typed_path
from launchyard.storage.redact import redact

if TYPE_CHECKING:
    from launchyard.launcher.recipe.load import UncheckedRecipe

SWEEP = "sweep.yaml"
STOPPED = "stopped.json"


class SweepPoint(BaseModel):
    """One run of a sweep. `name`: that of its recipe; `overrides`: the keys that make it this point."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    number: int
    name: str
    run_id: str
    overrides: dict[str, Any]


class Sweep(BaseModel):
    """A sweep as it was planned. `recipe`: what all points have in common, not checked; `url`: of its folder."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sweep_id: str
    url: str
    created: float
    cluster: str
    at_once: int | None
    source: str
    base: str
    design: dict[str, Any]
    recipe: dict[str, Any]
    points: list[SweepPoint]

    def runs(self) -> list[RunDir]:
        """Those that there are, in the order of the points."""
        runs = [self.run_of(point) for point in self.points]
        return [run for run in runs if run.exists(PLAN)]

    def run_of(self, point: SweepPoint) -> RunDir:
        return RunDir(f"{self.url}/{point.run_id}")

    @property
    def unchecked(self) -> UncheckedRecipe:
        """What all points have in common, to put the keys of one on top."""
        from launchyard.launcher.recipe.load import UncheckedRecipe  # the schema of recipes is slow to load
        from launchyard.launcher.recipe.yaml import Document

        return UncheckedRecipe(Document(self.recipe, f"{self.url}/{SWEEP}"), self.base)

    @property
    def varied(self) -> list[str]:
        """Keys that differ between points, in the order in which they were given."""
        keys = list(dict.fromkeys(key for point in self.points for key in point.overrides))
        told = {key: {json.dumps(point.overrides.get(key)) for point in self.points} for key in keys}
        return [key for key in keys if len(told[key]) > 1 or len(self.points) == 1]


@dataclass(frozen=True)
class KnownSweep:
    """One entry of the list of sweeps. `store`: StoreOptions of its cluster."""

    sweep_id: str
    url: str
    created: float
    store: dict[str, Any] = field(default_factory=dict)

    def open(self) -> Sweep:
        """The sweep; sets the store options of its cluster for this process. UserError if its folder is gone."""
        files.set_store_options(storage_options.StoreOptions.model_validate(self.store))
        return read_sweep(self.url)


# -- writing -----------------------------------------------------------------------------------------------------------
def new_sweep_id(name: str) -> str:
    """`name` and four characters more, free among runs and sweeps."""
    taken = {known.sweep_id for known in known_sweeps()}
    while (found := new_run_id(name)) in taken:
        pass
    return found


def check_sweep_place(url: str) -> None:
    """UserError if the folder of a new sweep is in use."""
    where = redact(url)
    with user_errors("--run-url"):
        if files.exists(f"{url}/{SWEEP}"):
            raise UserError(f"--run-url {where}: holds a sweep already", hint=f"launch sweep --resume {where}")
        if (os.path.isdir(url) or files.is_remote(url)) and files.listdir(url):
            raise UserError(f"--run-url {where}: not empty, and not a sweep; it must be a new folder")


def record_sweep(sweep: Sweep, store: storage_options.StoreOptions) -> None:
    """Writes the record, create-only, then lists it. NothingRunsError if that is not possible."""
    told = yaml.safe_dump(sweep.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
    text = f"# Made by `launch sweep`; go on with: launch sweep --resume {sweep.sweep_id}\n{told}"
    known = KnownSweep(sweep.sweep_id, sweep.url, sweep.created, store.model_dump(exclude_defaults=True))
    try:
        if not files.is_remote(sweep.url):
            os.makedirs(sweep.url, exist_ok=True)
        files.create(f"{sweep.url}/{SWEEP}", text.encode())
        _folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        local.replace_file(_folder() / f"{sweep.sweep_id}.json", json.dumps(asdict(known)).encode(), mode=0o600)
    except OSError as error:
        problem = str(error.strerror or error).lower()
        raise NothingRunsError(
            f"{error.filename or sweep.url}: the sweep cannot be recorded: {problem}; nothing was started",
            hint="every sweep is recorded before its first run starts",
        ) from error


def remove_sweep(sweep: Sweep) -> None:
    """Removes the record of a sweep whose runs are removed; other files in its folder stay."""
    for name in (STOPPED, SWEEP):
        files.remove(f"{sweep.url}/{name}")
    if not files.is_remote(sweep.url):
        with contextlib.suppress(OSError):
            os.rmdir(sweep.url)
    for ending in ("json", "log", "lock"):
        (_folder() / f"{sweep.sweep_id}.{ending}").unlink(missing_ok=True)


# -- reading -----------------------------------------------------------------------------------------------------------
def known_sweeps() -> list[KnownSweep]:
    """All sweeps that were launched from this account, oldest first; reads the list only."""
    found = []
    for path in _folder().glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(KnownSweep(**json.loads(path.read_text())))
    return sorted(found, key=lambda known: (known.created, known.sweep_id))


def find_sweep(name: str) -> Sweep | None:
    """A sweep by its id, the four characters at its end, or its folder's path or URL; None if that names none."""
    with user_errors():
        return _find_sweep(name)


def _find_sweep(name: str) -> Sweep | None:
    known = known_sweeps()
    for entry in known:
        if name == entry.sweep_id or (name == entry.sweep_id.rsplit("-", 1)[-1] and name not in known_ids()):
            return entry.open()
    if "://" not in name and os.sep not in name:
        return None
    url = RunDir(typed_path(name)).url
    for entry in known:
        if entry.url == url:
            return entry.open()
    if any(entry.url == url for entry in registered()):  # a run, in a store that is not reached yet
        return None
    return read_sweep(url) if files.exists(f"{url}/{SWEEP}") else None


def sort_out(names: Iterable[str]) -> tuple[list[Sweep], list[str]]:
    """The sweeps that some of the names mean, and the other names."""
    found = {name: find_sweep(name) for name in dict.fromkeys(names)}
    sweeps = {sweep.sweep_id: sweep for sweep in found.values() if sweep is not None}
    return list(sweeps.values()), [name for name, sweep in found.items() if sweep is None]


def need_sweep(name: str) -> Sweep:
    """find_sweep; UserError lists the newest ones if there is no such sweep."""
    found = find_sweep(name)
    if found is not None:
        return found
    newest = ", ".join(known.sweep_id for known in known_sweeps()[-3:])
    raise UserError(f"{name}: no such sweep; " + (f"the newest are {newest}" if newest else "none was launched yet"))


def read_sweep(url: str) -> Sweep:
    """The sweep of a folder. UserError if it is gone or damaged."""
    try:
        raw = files.read(f"{url}/{SWEEP}")
        return Sweep.model_validate({**yaml.safe_load(raw), "url": url})
    except FileNotFoundError as error:
        raise UserError(f"{url}: no sweep there (it has no {SWEEP})") from error
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"{url}/{SWEEP}: damaged: {str(error).splitlines()[0]}") from error


# -- one at a time -----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def submitting(sweep: Sweep) -> Iterator[None]:
    """Holds the sweep against other processes of this account that would submit its points. UserError if one does."""
    try:
        with locks.exclusive(_lock(sweep), wait=False, mode=0o600):
            yield
    except locks.LockedError as error:
        raise UserError(
            f"{sweep.sweep_id}: another process submits its points right now",
            hint=f"look at it: launch status {sweep.sweep_id}; end it: launch stop {sweep.sweep_id}",
        ) from error


def stop_submitting(sweep: Sweep) -> None:
    """Asks whoever submits its points to leave, and waits until it has."""
    RunDir(sweep.url).write_json(STOPPED, {"time": time.time()})
    with locks.exclusive(_lock(sweep), mode=0o600):
        pass


def is_stopped(sweep: Sweep) -> bool:
    return RunDir(sweep.url).find_json(STOPPED) is not None


def clear_stopped(sweep: Sweep) -> None:
    RunDir(sweep.url).clear(STOPPED)


def _lock(sweep: Sweep) -> Path:
    return _folder() / f"{sweep.sweep_id}.lock"


def _folder() -> Path:
    return user_state_folder("sweeps")
