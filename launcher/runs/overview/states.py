"""The state of every registered run. Knows no way to judge one: launcher/runs/state.py."""

from __future__ import annotations

from launchyard.errors import LaunchError
from launchyard.launcher.runs.overview.settled import Settled
from launchyard.launcher.runs.registry import GLANCE_SECONDS, Registered, registered
from launchyard.launcher.runs.state import RunState, state_of
from launchyard.storage import files, retry


def overview() -> list[RunState]:
    """The states of all registered runs whose directory is there, oldest first.

    One whose store does not answer is `unreachable`, and others of that store are not asked any more. One of this disk
    that is over, and in whose folders nothing has changed since it was judged, is not judged again.
    """
    states = list[RunState | None]()
    silent = dict[tuple[str, str], str]()
    settled = Settled()
    for entry in registered():
        store = (entry.url.partition("://")[0], repr(entry.store))
        if store in silent:
            states.append(_unreachable(entry, silent[store]))
            continue
        try:
            states.append(settled.state(entry.run_id, entry.url, lambda: _glance(entry)))  # noqa: B023 called at once
        except LaunchError as error:
            states.append(_unreachable(entry, str(error)))
        except (OSError, ValueError) as error:
            states.append(_unreachable(entry, str(error)))
            if files.is_remote(entry.url) and not isinstance(error, PermissionError):
                silent[store] = str(error)
    settled.write()
    return [state for state in states if state is not None]


def _glance(entry: Registered) -> RunState | None:
    """The state of one run among many, asked for with a short retry budget; None if it is gone."""
    run = entry.open()
    with retry.retry_budget(GLANCE_SECONDS):
        return state_of(run) if entry.is_of(run) else None


def _unreachable(entry: Registered, message: str) -> RunState:
    return RunState(entry.run_id, entry.name, entry.url, "unreachable", resumable=False, alive=False, message=message)
