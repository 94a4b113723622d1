"""The frozen files of a run are those of its launch: recipe.yaml by plan.json, plan.json by the first job.json."""

from __future__ import annotations

from launchyard.errors import LaunchError
from launchyard.run import layout
from launchyard.run.rundir import RunDir


class ChangedError(LaunchError, ValueError):
    """A frozen file of a run was changed after its launch. Another try would find the same."""


def content_digest(raw: bytes) -> str:
    """Returns the xxh3_64 of some bytes, in hex."""
    import xxhash

    return xxhash.xxh3_64_hexdigest(raw)


def plan_digest(run: RunDir) -> str:
    """Returns the digest of plan.json as it is now; empty for a run that was made by hand."""
    try:
        return content_digest(run.read_bytes(layout.PLAN))
    except FileNotFoundError:
        return ""


def check_frozen(run: RunDir) -> None:
    """Raises ChangedError, which names the file, and DamagedError if the plan cannot be read.

    Files of runs that older versions made are not recorded, and pass.
    """
    plan = run.read_object(layout.PLAN)  # not its place, which a resume may name again
    recorded = str(plan.get(layout.RECIPE_DIGEST, ""))
    try:
        changed = recorded and content_digest(run.read_bytes(layout.RECIPE)) != recorded
    except FileNotFoundError:
        raise ChangedError(f"{run.path(layout.RECIPE)} is gone", hint="put it back: the run is made of it") from None
    if changed:
        raise ChangedError(
            f"{run.path(layout.RECIPE)} was changed after the launch",
            hint="put it back; changes go on the command line of a resume, as KEY=VALUE",
        )
    claimed = [job.plan_digest for attempt in run.attempts() if (job := run.job(attempt)).plan_digest]
    if claimed and plan_digest(run) != claimed[0]:
        raise ChangedError(
            f"{run.path(layout.PLAN)} was changed after the launch",
            hint="put it back; it decides which tokens and which model the run has",
        )
