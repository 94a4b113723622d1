"""The interface of a backend, which every place has where a plan can run, and finding one by its name.

A backend is a folder beside this file, whose modules have fixed names: docs/guides/add-a-scheduler.md.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

from launchyard.errors import UserError
from launchyard.launcher.agent.liveness import Answer, Beat, Verdict, judge
from launchyard.launcher.agent.ownership import newest_job, refuse_owner
from launchyard.launcher.backends.findings import Finding
from launchyard.launcher.backends.offer import Offer
from launchyard.launcher.backends.request import Ask, Process, Request
from launchyard.launcher.backends.section import known_backends
from launchyard.launcher.format import duration
from launchyard.run.lease import LEASE_SECONDS, heartbeat_age
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
    has_spares: bool = False  # keeps nodes aside for those that are lost: resources.spare_nodes
    notices_silence: bool = False  # an agent that is frozen or cut off is given up within seconds
    cancelled_reason: str = "cancelled"  # of the outcome, if the scheduler's own command has ended a job
    takes_environment: bool = True  # a job has the variables of the shell that submits it
    trusted: bool = True  # it watches the processes of its jobs, and keeps its queue over an outage


@dataclass(frozen=True)
class JobStatus:
    """The state of a job, as its scheduler reports it."""

    state: Answer
    scheduler_state: str = ""  # by the scheduler's own name
    reason: str = ""  # why it waits, or is unknown, in plain English
    nodes: str = ""
    start: float | None = None  # of this start of the job; expected while it waits; Unix time
    end: float | None = None  # of its time limit, Unix time

    @property
    def is_over(self) -> bool:
        return self.state in ("gone", "forgotten")


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

    def node_cpus(self, cluster: Cluster, gpus: int) -> tuple[int | None, str]:
        """Asks the scheduler for the CPUs of a node with so many GPUs, if the cluster file leaves them out.

        Returns None where there is nothing to ask or no answer; and a note for people, or an empty text.
        """

    def worker_python(self, cluster: Cluster, here: str) -> str:
        """Returns the interpreter of the workers. `here`: that of the launcher."""

    # -- running -------------------------------------------------------------------------------------------------------
    def submit(self, run: RunDir, plan: Planned, overrides: dict[str, Any]) -> Job:
        """Starts a job that owns the run; returns once it has claimed its attempt, or waits in a queue.

        UserError if the run has a living owner, or the scheduler refuses the job; nothing is queued then.
        """

    def poll(self, run: RunDir, job: Job) -> JobStatus:
        """Returns the state of the job at its scheduler; where there is none, that of its process, or `none`."""

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


class SiteReader(Protocol):
    """The module `site` in the folder of each place."""

    def offers(self, address: str | None) -> list[Offer]:
        """Returns the nodes that can be found from here, or at an address; none where its scheduler does not answer."""


@cache
def load_backend(name: str) -> Backend:
    """The backend of that name; UserError lists those that exist."""
    if name not in known_backends():
        raise UserError(f"scheduler {name}: unknown; known schedulers: {', '.join(known_backends())}")
    return cast(Backend, importlib.import_module(f"launchyard.launcher.backends.{name}.backend"))


def load_doctor(name: str) -> Doctor:
    return cast(Doctor, importlib.import_module(f"launchyard.launcher.backends.{name}.doctor"))


def load_site(name: str) -> SiteReader:
    return cast(SiteReader, importlib.import_module(f"launchyard.launcher.backends.{name}.site"))


def judge_job(run: RunDir, job: Job, seen: JobStatus | None = None) -> Verdict:
    """Asks the two witnesses about a job that stands for its run. `seen`: what its scheduler says, if known already."""
    backend = load_backend(job.backend)
    seen = seen or backend.poll(run, job)
    record = run.outcome()
    over = record is not None and record.attempt >= job.attempt
    age = math.inf if over else heartbeat_age(run, job.attempt)
    beat: Beat = "outcome" if over else _beat(job, seen, age)
    verdict = judge(seen.state, beat, trusted=backend.TRAITS.trusted)
    return replace(verdict, reason=_reason(verdict, backend.TRAITS.title, job, seen, age))


def _beat(job: Job, seen: JobStatus, age: float) -> Beat:
    """The heartbeat of a job without an outcome, whose age is in seconds."""
    if not job.host and not job.damaged:
        return "none yet"
    if age < LEASE_SECONDS:
        return "fresh"
    started_again = seen.state == "running" and seen.start is not None and time.time() - seen.start < age
    return "none yet" if started_again else "stale"


def _reason(verdict: Verdict, title: str, job: Job, seen: JobStatus, age: float) -> str:
    """The reason for a verdict in plain English; empty if there is nothing to explain."""
    if verdict.reason:
        said = seen.scheduler_state or seen.state
        shown = duration(age) if math.isfinite(age) else "long"
        return verdict.reason.format(title=title, said=said, age=shown, job=job.job_id)
    if verdict.state == "lost" and seen.is_over and seen.scheduler_state:
        return f"{title} has ended it: {seen.scheduler_state}" + (f", {seen.reason}" if seen.reason else "")
    return seen.reason


def owner_alive(run: RunDir, job: Job | None = None) -> bool:
    """Returns True if the owner of the newest attempt (or of `job`) lives, or will be started."""
    job = job or newest_job(run)
    return job is not None and judge_job(run, job).alive


def refuse_if_alive(run: RunDir) -> None:
    """UserError that names the owner, if the run has a living one (or may) that is not this process."""
    refuse_owner(run, newest_job(run), judge_job)
