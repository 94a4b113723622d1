"""The interface of a backend, which every place has where a plan can run, and finding one by its name.

A backend is a folder beside this file, whose modules have fixed names: docs/guides/add-a-scheduler.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from launchyard.errors import UserError
from launchyard.launcher.agent.ownership import Witness, newest_job, refuse_owner
from launchyard.launcher.backends.findings import Finding
from launchyard.launcher.backends.request import Ask, Process, Request
from launchyard.launcher.backends.section import known_backends
from launchyard.run.records import Job, Shape
from launchyard.run.rundir import RunDir

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster
    from launchyard.training.recipe import Recipe


@dataclass(frozen=True)
class Traits:
    """Properties of a place, so that no code has to ask for its name."""

    title: str  # for people
    scheduled: bool = True  # a scheduler has the job and knows if its owner lives. Else processes start here
    waits_for_jobs: bool = False  # a job can wait for the end of another one: `after` of a recipe
    has_time_limit: bool = False  # resources.time_limit is enforced
    can_shrink: bool = False  # fewer nodes than asked for will do: resources.min_nodes
    cancelled_reason: str = "cancelled"  # of the outcome, if the scheduler's own command has ended a job


@dataclass(frozen=True)
class JobStatus:
    """The state of a job, as its scheduler reports it. `unknown`: the scheduler does not answer."""

    state: Literal["queued", "running", "ending", "gone", "unknown"]
    scheduler_state: str = ""  # by the scheduler's own name
    reason: str = ""  # why it waits, in plain English
    nodes: str = ""
    start: float | None = None  # expected while it waits, Unix time
    end: float | None = None  # of its time limit, Unix time
    restarts: int = 0


class Planned(Protocol):
    """The part of a plan that a backend reads."""

    @property
    def run_id(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def environment(self) -> dict[str, str]: ...
    @property
    def request(self) -> Request | None: ...
    @property
    def agent(self) -> list[str]: ...


class Backend(Protocol):
    """The module `backend` in the folder of each place."""

    TRAITS: Traits

    # -- planning: pure ------------------------------------------------------------------------------------------------
    def check(self, recipe: Recipe, cluster: Cluster) -> Iterator[tuple[str, str]]:
        """Returns the problems of a recipe in this place: (dotted key, what) each."""

    def request(self, cluster: Cluster, ask: Ask) -> Request | None:
        """Returns the request that the scheduler will be sent; None where there is no scheduler."""

    def first_process(self, cluster: Cluster, ask: Ask) -> Process:
        """Returns the outermost process of an attempt: the owner, or the one that starts the agents of all nodes."""

    def remembered(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Returns keys of the cluster file that a stored plan holds, for when the file is not found any more."""

    def worker_python(self, cluster: Cluster, here: str) -> str:
        """Returns the interpreter of the workers. `here`: that of the launcher."""

    # -- running -------------------------------------------------------------------------------------------------------
    def submit(self, run: RunDir, plan: Planned, overrides: dict[str, Any]) -> Job:
        """Starts a job that owns the run; returns once it has claimed its attempt, or waits in a queue.

        UserError if the run has a living owner, or the scheduler refuses the job; nothing is queued then.
        """

    def is_alive(self, run: RunDir, job: Job) -> bool:
        """Returns True if the job that owns an attempt still lives."""

    def poll(self, run: RunDir, job: Job) -> JobStatus | None:
        """Returns the state of the job at its scheduler; None where there is no scheduler."""

    def notify(self, run: RunDir, job: Job) -> str:
        """Gives notice of a preemption: agreed save, then another attempt. Returns the means, in a few words."""

    def cancel(self, run: RunDir, job: Job) -> None:
        """Ends the job now, without a save; returns when nothing of it is left."""

    def job_log(self, run: RunDir) -> str:
        """Returns the output of the newest job itself; empty if it is not known."""

    def run_on_node(self, run: RunDir, job: Job, argv: list[str]) -> str:
        """Returns the output of Python with these arguments on a job's last node. LaunchError if it could not run."""


class Doctor(Protocol):
    """The module `doctor` in the folder of each place."""

    def doctor(self, cluster: Cluster, folder: str | None, saves: Sequence[float]) -> Iterator[Finding]:
        """Returns the findings about a place, one after another.

        folder: where a job on a node leaves its answer; None: no job. saves: seconds that saves here have taken.
        """


@cache
def load_backend(name: str) -> Backend:
    """The backend of that name; UserError lists those that exist."""
    if name not in known_backends():
        raise UserError(f"scheduler {name}: unknown; known schedulers: {', '.join(known_backends())}")
    return cast(Backend, importlib.import_module(f"launchyard.launcher.backends.{name}.backend"))


def load_doctor(name: str) -> Doctor:
    return cast(Doctor, importlib.import_module(f"launchyard.launcher.backends.{name}.doctor"))


def witness(job: Job) -> Witness:
    """The test for a living owner of a job."""
    backend = load_backend(job.backend)
    return Witness(backend.is_alive, scheduled=backend.TRAITS.scheduled)


def owner_alive(run: RunDir, job: Job | None = None) -> bool:
    """Returns True if the owner of the newest attempt (or of `job`) lives."""
    job = job or newest_job(run)
    return job is not None and load_backend(job.backend).is_alive(run, job)


def refuse_if_alive(run: RunDir) -> None:
    """UserError that names the owner, if the run has a living one that is not this process."""
    refuse_owner(run, newest_job(run), witness)
