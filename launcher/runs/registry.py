"""The registry of runs: one small file for each in the user's state folder, with id, name and URL."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from launchyard.errors import NothingRunsError, UserError
from launchyard.host.folders import user_state_folder
from launchyard.launcher.runs.facts import RunFacts
from launchyard.run.layout import PLAN
from launchyard.run.rundir import RunDir
from launchyard.storage import files, local, retry
from launchyard.storage import options as storage_options

_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # letters and digits that nobody mixes up
GLANCE_SECONDS = 3.0  # for one run among many, if its store does not answer


# -- registry --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Registered:
    """One entry of the registry. `created` in seconds since the epoch; `store`: the cluster's StoreOptions."""

    run_id: str
    name: str
    url: str
    created: float
    store: dict[str, Any] = field(default_factory=dict)

    def open(self) -> RunDir:
        """Its directory; sets the store options of the run's cluster for this process."""
        files.set_store_options(storage_options.StoreOptions.model_validate(self.store))
        return RunDir(self.url)

    def is_there(self) -> bool:
        """Returns True if its plan is there, or that is not known now."""
        run = self.open()
        try:
            with retry.retry_budget(GLANCE_SECONDS):
                return self.is_of(run)
        except (OSError, ValueError):
            return True

    def is_of(self, run: RunDir) -> bool:
        """Returns True if the directory still holds this run: another one may have replaced it."""
        return run.exists(PLAN) and RunFacts(run).plan.get("run_id", self.run_id) == self.run_id


def new_run_id(name: str) -> str:
    """`name` and four characters more, free in the registry."""
    taken = {path.stem for path in registry_folder().glob("*.json")}
    while True:
        run_id = f"{name}-{''.join(secrets.choice(_ALPHABET) for _ in range(4))}"
        if run_id not in taken:
            return run_id


def register(run_id: str, name: str, url: str, *, store: storage_options.StoreOptions | None = None) -> None:
    """Records a run and the options of its store, readable by its user only: URLs may be confidential.

    NothingRunsError if that is not possible: it is called before the run is started.
    """
    folder = registry_folder()
    options = (store or storage_options.StoreOptions()).model_dump(exclude_defaults=True)
    entry = Registered(run_id, name, RunDir(url).url, time.time(), options)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(entry)
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise NothingRunsError(
            f"{folder}: this run cannot be recorded there: {problem}; nothing was started",
            hint="every run is recorded before it starts: make room there, or set XDG_STATE_HOME to another folder",
        ) from error


def make_known(run: RunDir, run_id: str, name: str, store: storage_options.StoreOptions) -> None:
    """Records a run that was found by its place: its folder was moved, or it is of another account or machine."""
    entry = next((entry for entry in registered() if entry.run_id == run_id), None)
    if entry is not None and (files.is_remote(entry.url) or entry.is_of(RunDir(entry.url))):
        return  # a copy of a run that is where it was has no name of its own
    register(run_id, name, run.url, store=store)


def record_store(run_id: str, store: storage_options.StoreOptions) -> None:
    """Records other store options for a run; nothing happens to one of another account, or if that is not possible."""
    entry = next((entry for entry in registered() if entry.run_id == run_id), None)
    if entry is not None:
        with contextlib.suppress(OSError):
            _write(replace(entry, store=store.model_dump(exclude_none=True)))


@contextlib.contextmanager
def registered_at(run: RunDir, run_id: str, name: str, store: storage_options.StoreOptions) -> Iterator[None]:
    """Records the new place of a run before its job is submitted inside; the old one again if that is refused."""
    before = next((entry for entry in registered() if entry.run_id == run_id), None)
    register(run_id, name, run.url, store=store)
    try:
        yield
    except (UserError, NothingRunsError):
        if before is None:
            forget(run_id)
        else:
            _write(before)
        raise


def _write(entry: Registered) -> None:
    content = json.dumps(asdict(entry)).encode()
    local.replace_file(registry_folder() / f"{entry.run_id}.json", content, mode=0o600)


def forget(run_id: str) -> None:
    """Removes a run from the registry; its directory stays."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        (registry_folder() / f"{run_id}.json").unlink()


def known_ids() -> list[str]:
    """Ids of all registered runs, oldest first."""
    return [entry.run_id for entry in registered()]


def registered() -> list[Registered]:
    """All runs that were launched from this account, oldest first; reads the registry only."""
    found = []
    for path in registry_folder().glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Registered(**json.loads(path.read_text())))
    return sorted(found, key=lambda entry: (entry.created, entry.run_id))


def registry_folder() -> Path:
    return user_state_folder("runs")
