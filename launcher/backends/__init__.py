"""Places where a plan can run, one file each, loaded by name when asked for."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from launcher.errors import UserError
from training.rundir import Job, RunDir

if TYPE_CHECKING:
    from launcher.backends.in_queue import Queued


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
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if "_" not in module.name)


def load_backend(name: str) -> Backend:
    """The backend of that name; UserError lists those that exist."""
    if name not in known_backends():
        raise UserError(f"scheduler {name}: this version cannot drive it; it can: {', '.join(known_backends())}")
    return cast(Backend, importlib.import_module(f"{__name__}.{name}"))
