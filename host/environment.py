"""The environment of our processes: names of our own variables, and the variables that children inherit."""

from __future__ import annotations

import os

OWN_PREFIX = "LAUNCHYARD_"
# Marks of the processes of a run, by which host/processes.py finds them.
MARK_RUN = "LAUNCHYARD_RUN_URL"
MARK_ATTEMPT = "LAUNCHYARD_ATTEMPT"
MARK_NODE = "LAUNCHYARD_NODE_RANK"
# From the agent of a node to its workers.
SCRATCH = "LAUNCHYARD_SCRATCH"  # a private folder of this attempt
AGENT_PID = "LAUNCHYARD_AGENT_PID"
JOB_END = "LAUNCHYARD_JOB_END"  # Unix time at which the scheduler ends the job
GRACE = "LAUNCHYARD_GRACE"  # seconds from a stop request until the agent ends the workers
OF_A_RUN = frozenset({MARK_RUN, MARK_ATTEMPT, MARK_NODE, SCRATCH, AGENT_PID, JOB_END, GRACE})
# Of the sandboxes.
RAY_SITE = "LAUNCHYARD_RAY_SITE"
DASHBOARDS = "LAUNCHYARD_DASHBOARDS"


def own_environment() -> dict[str, str]:
    """Returns this process's variables for processes that it starts, without those of a run that it may be part of."""
    return {key: value for key, value in os.environ.items() if key not in OF_A_RUN}


def variable(name: str) -> str | None:
    """Returns one variable of this process; None if it is not set."""
    return os.environ.get(name)
