"""The environment of our processes: the names of our own variables, and what is passed on to children."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


MARK_RUN, MARK_ATTEMPT, MARK_NODE = "LAUNCHYARD_RUN_URL", "LAUNCHYARD_ATTEMPT", "LAUNCHYARD_NODE_RANK"
MARKS = {MARK_RUN, MARK_ATTEMPT, MARK_NODE, "LAUNCHYARD_SCRATCH", "LAUNCHYARD_AGENT_PID", "LAUNCHYARD_JOB_END",
          "LAUNCHYARD_GRACE"}  # fmt: skip


def own_environment() -> dict[str, str]:
    """What this process finds around it, for processes that it starts; without the marks of a run it may be part of."""
    return {key: value for key, value in os.environ.items() if key not in MARKS}
