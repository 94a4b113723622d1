"""Moving a run to another cluster at a resume that reaches its directory; see copy_run.py for one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from launchyard.errors import NothingRunsError, UserError
from launchyard.launcher.backends.cluster import Cluster, reach_storage, recipe_defaults
from launchyard.launcher.plan.plan import Plan
from launchyard.launcher.runs.registry import record_store
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.storage.redact import redact

# The keys of a plan that belong to its cluster.
OF_PLACE = ("cluster", "scheduler", "store", "storage", "environment", "request")


def reach_from(cluster: Cluster, run: RunDir) -> None:
    """Sets the store options of another cluster for this process; UserError if the run is not reached with them."""
    where = redact(run.url)
    reach_storage(cluster)
    try:
        there = run.exists(layout.PLAN)
    except OSError as error:
        raise UserError(f"--cluster {cluster.name}: {where} is not reached with its storage: {error}") from error
    if not there:
        raise UserError(
            f"--cluster {cluster.name}: no run at {where} with its storage",
            hint="its file names another endpoint or profile than the cluster of the run; both must reach one place",
        )


def place_changes(cluster: Cluster) -> dict[str, object]:
    """Keys of a recipe that follow from the cluster, unless somebody says otherwise."""
    metrics = recipe_defaults(cluster).value.get("metrics", {})
    return {f"metrics.{key}": value for key, value in metrics.items()}


@contextmanager
def recorded_place(run: RunDir, plan: Plan) -> Iterator[None]:
    """Records the place of a run for the attempt that is submitted inside, and for all later ones.

    Takes that back if the job is refused.
    """
    facts = plan.model_dump(mode="json")
    try:
        before = run.read_bytes(layout.PLACE)
    except FileNotFoundError:
        before = None
    run.write_json(layout.PLACE, {key: facts.get(key) for key in OF_PLACE}, sync=True)
    try:
        yield
    except (UserError, NothingRunsError):
        if before is None:
            run.remove(layout.PLACE)
        else:
            run.write_text(layout.PLACE, before.decode(), sync=True)
        raise
    record_store(plan.run_id, plan.store)
