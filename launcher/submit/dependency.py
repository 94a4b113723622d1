"""`after: RUN`: finds the scheduler's job that has to succeed before a run may start. Starts and waits for nothing."""

from __future__ import annotations

from launchyard.errors import UserError
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.runs.find import find
from launchyard.launcher.runs.state import state_of


def job_to_wait_for(name: str, cluster: Cluster) -> str | None:
    """The job's id; None if that run is completed. UserError if there is no such run, or no job can wait for it."""
    run = find(name)
    state = state_of(run)
    job = newest_job(run)
    if state.state == "completed":
        return None
    if job is None or not state.alive:
        raise UserError(
            f"after: {state.run_id} is {state.state} and would never be completed",
            hint=f"launch resume {state.run_id}, then this one; or leave `after` out",
        )
    if job.backend != cluster.scheduler:
        raise UserError(
            f"after: {state.run_id} runs on {job.backend}, where no job of {cluster.name} can wait for it",
            hint=f"launch it when that run is completed: launch status {state.run_id}",
        )
    return job.job_id
