"""Places where a plan can run, one file each, loaded by name when asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from launchyard.errors import UserError
from launchyard.run.records import Job
from launchyard.run.rundir import RunDir


class Backend(Protocol):
    """What every place can do. A module of this package is one."""

    def submit(
        self,
        run: RunDir,
        *,
        nnodes: int,
        nproc_per_node: int,
        device: Literal["cpu", "cuda"],
        env: dict[str, str],
        overrides: dict[str, Any],
        script: str | None,
        agent: list[str],
    ) -> Job:
        """Start a job that owns the run; returns once it has claimed its attempt, or waits in a queue.

        script, agent: what a scheduler is sent, and what starts the agents there; see Plan. UserError if it may not.
        """

    def is_alive(self, run: RunDir, job: Job) -> bool:
        """Does the job that owns an attempt still live?"""

    def look(self, run: RunDir, job: Job) -> Queued | None:
        """The job as the scheduler sees it; None where there is no scheduler."""

    def notify(self, run: RunDir, job: Job) -> str:
        """Give the job notice of a preemption: agreed save, then another attempt. Says what gave it, in a few words."""

    def cancel(self, run: RunDir, job: Job) -> None:
        """End the job now, without a save; returns when nothing of it is left."""

    def job_log(self, run: RunDir) -> str:
        """What the newest job itself has printed; nothing if that cannot be told."""


def known_backends() -> list[str]:
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/backend.py"))


def load_backend(name: str) -> Backend:
    """The backend of that name; UserError lists those that exist."""
    if name not in known_backends():
        raise UserError(f"scheduler {name}: this version cannot drive it; it can: {', '.join(known_backends())}")
    return cast(Backend, importlib.import_module(f"launchyard.launcher.backends.{name}.backend"))


@dataclass(frozen=True)
class Queued:
    """A job as its scheduler sees it now. `unknown`: the scheduler does not answer."""

    state: Literal["queued", "running", "ending", "gone", "unknown"]
    word: str = ""  # the scheduler's own
    reason: str = ""  # why it waits, in our words
    nodes: str = ""
    start: float | None = None  # expected while it waits, Unix time
    end: float | None = None  # of its time limit, Unix time
    restarts: int = 0
