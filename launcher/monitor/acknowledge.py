"""`launch ack`: somebody knows how a run has ended, so nobody is paged for it any more. Another end pages again.

It stands in the run directory, so every monitor of any account sees it.
"""

from __future__ import annotations

import getpass
import socket
import time

from launchyard.errors import UserError
from launchyard.launcher.runs.state import RunState, state_of
from launchyard.run import layout
from launchyard.run.records import Acknowledged
from launchyard.run.rundir import RunDir
from launchyard.storage import damage
from launchyard.storage.errors import DamagedError
from launchyard.storage.redact import redact

PAGING_ENDS = ("failed", "lost")  # nobody starts such a run again by itself


def acknowledge(run: RunDir, *, note: str = "") -> Acknowledged:
    """UserError unless the run has ended so that it pages."""
    state = state_of(run)
    if state.state not in PAGING_ENDS or state.attempt is None:
        raise UserError(
            f"{state.run_id} is {state.state}: only a run that has failed, or is lost, pages until it is acknowledged",
            hint="alerts about a live run end with their cause; silence them in the Alertmanager until then",
        )
    by = f"{_user()}@{socket.gethostname()}"
    record = Acknowledged(attempt=state.attempt, state=state.state, by=by, note=redact(note), time=time.time())
    run.write_json(layout.ACKNOWLEDGED, record.model_dump())
    return record


def is_unattended(run: RunDir) -> bool:
    """Returns True if it pages now."""
    state = state_of(run)
    return state.state in PAGING_ENDS and acknowledged(run, state) is None


def acknowledged(run: RunDir, state: RunState) -> Acknowledged | None:
    """The acknowledgement of this very end; None without one."""
    if state.state not in PAGING_ENDS:
        return None
    try:
        record = run.read_model(layout.ACKNOWLEDGED, Acknowledged)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        damage.report_damage(str(error))
        return None
    return record if (record.attempt, record.state) == (state.attempt, state.state) else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return "somebody"
