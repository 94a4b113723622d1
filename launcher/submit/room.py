"""Room for checkpoints where a run goes, asked for before anything starts there."""

from __future__ import annotations

from launchyard.errors import UserError
from launchyard.launcher.backends.hardware import HostFacts, free_bytes
from launchyard.launcher.format import size
from launchyard.launcher.plan.plan import Plan
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from launchyard.storage.redact import redact


def with_room(host: HostFacts, run: RunDir) -> HostFacts:
    """The facts with the bytes that a run may fill: what is free there, and what its checkpoints hold already."""
    if not run.local:
        return host
    free = free_bytes(run.url)
    held = files.usage(run.path(layout.CHECKPOINTS))[1]
    return host.model_copy(update={"free_bytes": None if free is None else free + held})


def check_room(plan: Plan, run: RunDir, *, where: str = "run directory") -> None:
    """UserError if not one more checkpoint fits where a run goes. where: what the message calls that place."""
    free = free_bytes(run.url) if run.local else None
    if free is not None and free < plan.checkpoint_bytes:
        what = f"{size(free)} are free there, and one checkpoint takes {size(plan.checkpoint_bytes)}"
        raise UserError(f"{where} {redact(plan.run_url)}: {what}; make room, or choose another place")
