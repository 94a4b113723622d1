"""Ray: a job that owns the run inside the cluster, asks for its nodes there, and tries again there.

The launcher's side; in the cluster launcher/backends/ray/owner.py is the owner. The state of a job is that
of Ray Jobs and of the run directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.agent.signals import CANCELLED
from launchyard.launcher.backends.base import JobStatus, Planned, Traits, refuse_if_alive
from launchyard.launcher.backends.code import pack_code
from launchyard.launcher.backends.handover import hand_over, record_cancel
from launchyard.launcher.backends.ray import request as ray_request
from launchyard.launcher.backends.ray.client import AwayError, Dashboard
from launchyard.launcher.backends.ray.options import PLACE_KEYS
from launchyard.launcher.backends.ray.request import RayRequest, stored_request
from launchyard.launcher.backends.ray.request import worker_python as worker_python
from launchyard.launcher.backends.request import Ask, Process
from launchyard.run import layout
from launchyard.run.records import RAY_STOP, Job, Submission
from launchyard.run.rundir import RunDir

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster
    from launchyard.training.recipe import Recipe

OBEY_SECONDS = 20.0  # for an owner that was asked to end, before Ray ends it
CANCEL_SECONDS = 60.0
STEP_SECONDS = 120.0  # for a short job on a node; Ray starts three processes for it
_NOT_OURS = "Running entrypoint for job "  # Ray's own line, which may come after the output of the entrypoint


# Not trusted: its table of jobs outlives the head that a job has died with (fault tolerance of the GCS), or does not.
TRAITS = Traits(
    title="Ray",
    can_shrink=True,
    notices_silence=True,
    cancelled_reason=RAY_STOP,
    takes_environment=False,
    trusted=False,
)


# -- planning --------------------------------------------------------------------------------------------------------
def check(recipe: Recipe, cluster: Cluster) -> Iterator[tuple[str, str]]:
    """No further checks: a recipe that is valid elsewhere is valid here."""
    return iter(())


def request(cluster: Cluster, ask: Ask) -> RayRequest:
    return ray_request.make_request(cluster, ask)


def first_process(cluster: Cluster, ask: Ask) -> Process:
    return Process(role="agent", node_rank=0, argv=ray_request.agent_argv(cluster, ask), env=ask.environment)


def node_cpus(cluster: Cluster, gpus: int) -> tuple[int | None, str]:
    """Nothing is asked: a job takes the CPUs that it names."""
    return None, ""


def remembered(plan: dict[str, Any]) -> dict[str, Any]:
    stored = stored_request(plan)
    names = (("cpus", "CPU"), ("gpus", "GPU"))
    node = {key: int(stored.bundle[name]) for key, name in names if name in stored.bundle}
    return {"ray": stored.place, "node": node}


# -- running ---------------------------------------------------------------------------------------------------------
def submit(run: RunDir, plan: Planned, overrides: dict[str, Any]) -> Job:
    """Send the request to Ray Jobs. UserError with Ray's reason if it refuses; nothing is queued then."""
    refuse_if_alive(run)
    planned = plan.request
    assert isinstance(planned, RayRequest)
    place = reach(planned)
    ray = dashboard(place)
    with refusals():
        ray.version()  # before anything is written
    waiting = Submission(
        backend="ray",
        submitted=time.time(),
        env=plan.environment,
        agent=plan.agent,
        overrides=overrides,
        place=place,
        **plan.shape.model_dump(),
    )
    job_id = f"{plan.run_id}-{secrets.token_hex(3)}"

    def send(number: int) -> str:
        with refusals():
            return ray.submit(ray_request.filled(planned.job, job_id=job_id, code=send_code(ray)))

    return hand_over(run, waiting, send, take_back=lambda number: _take_back(run))


def reach(request: RayRequest) -> dict[str, Any]:
    """The address of Ray. Without one in the cluster it is that of this machine, started for the first run."""
    place: dict[str, Any] = {key: request.place[key] for key in PLACE_KEYS if key in request.place}
    if "address" in place:
        return place
    from launchyard.launcher.sandbox.ray import service as here

    return {"address": here.for_run(request.nodes, request.bundle)}


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """A Ray that does not answer when a job is sent is taken for a wrong address: nothing was begun."""
    try:
        yield
    except AwayError as error:
        raise UserError(str(error), hint=error.hint) from error


def dashboard(place: dict[str, Any]) -> Dashboard:
    return Dashboard(**{key: place[key] for key in PLACE_KEYS if key in place})


def send_code(ray: Dashboard) -> str | None:
    """Uploads the code that this process runs, so that a run keeps it. Returns its URI; None for an installed one."""
    package = pack_code()
    if package is None:
        return None
    return ray.upload(f"_ray_pkg_{hashlib.sha256(package).hexdigest()[:16]}.zip", package)


def _take_back(run: RunDir) -> None:
    """Removes all that was written for a refused job."""
    if run.local and not run.listdir(layout.SUBMISSIONS):
        with contextlib.suppress(OSError):
            os.rmdir(run.path(layout.SUBMISSIONS))


# -- polling and ending ----------------------------------------------------------------------------------------------
def poll(run: RunDir, job: Job) -> JobStatus:
    """The job as Ray sees it. One that runs and waits for its nodes counts as queued, with the reason."""
    try:
        seen = of_run(run).ask(job.job_id)
    except LaunchError as error:  # one run among many: its state is unknown
        return JobStatus("unknown", reason=str(error))
    if seen.state == "running" and (reason := run.waiting(job.job_id)) is not None:
        return JobStatus("queued", seen.scheduler_state, reason)
    if seen.state == "queued":
        return JobStatus("queued", seen.scheduler_state, seen.reason or "Ray is starting it")
    return seen


def of_run(run: RunDir) -> Dashboard:
    """Ray as the run's newest job was sent to it."""
    newest = run.newest_submission()
    if newest is None or "address" not in newest.place:
        raise LaunchError(f"{run.url}: no submission to Ray is known")
    return dashboard(newest.place)


def notify(run: RunDir, job: Job) -> str:
    """As when a node is drained: agreed save, then another attempt."""
    run.give_notice(job.attempt, "preempted")
    return "a notice in its run directory"


def cancel(run: RunDir, job: Job) -> None:
    """End the job now; returns when Ray has ended all of it."""
    run.request_stop(CANCELLED)
    ray = of_run(run)
    if not ray.wait_gone(job.job_id, seconds=OBEY_SECONDS):
        ray.stop(job.job_id)
        if not ray.wait_gone(job.job_id, seconds=CANCEL_SECONDS):
            raise LaunchError(f"job {job.job_id} is still ending", hint=f"ray job status {job.job_id}")
    if (seen := ray.ask(job.job_id)).state == "unknown":  # the request stays, for an owner that reads it
        message = f"job {job.job_id} was asked to end, and its state is unknown: {seen.reason}"
        raise LaunchError(message, hint="try again when its dashboard is back")
    record_cancel(run, job)
    run.clear_stop()
    run.clear_waiting()


def run_on_node(run: RunDir, job: Job, argv: list[str]) -> str:
    """The output of Python with these arguments, beside the run's own on its last node. LaunchError if it fails."""
    name = layout.nodes(job.attempt)
    if not run.exists(name):
        raise LaunchError(f"job {job.job_id} has no nodes now", hint="launch status")
    last = run.read_json(name)[-1]
    stored = stored_request(run.read_plan())
    ray = of_run(run)
    printed = list[str]()
    node_id = str(last["node_id"])
    request = ray_request.short_job(stored.job, node_id=node_id, argv=argv, code=send_code(ray))
    failed = run_job(ray, request, on_output=printed.append)
    if failed is not None:
        raise LaunchError(f"no process could run on {last['host']}: {failed}")
    return "".join(printed)


def run_job(
    ray: Dashboard, request: dict[str, Any], *, on_output: Callable[[str], None] = lambda _: None
) -> str | None:
    """Runs a job to its end. Returns the cause if it failed. `on_output` gets all that it has printed."""
    job_id = ray.submit(request)
    if not ray.wait_gone(job_id, seconds=STEP_SECONDS):
        ray.stop(job_id)
        return f"it did not end within {STEP_SECONDS:.0f} s"
    printed = ray.logs(job_id)
    on_output(printed)
    if ray.ask(job_id).scheduler_state == "SUCCEEDED":
        return None
    return (printed.strip().splitlines() or ["no output"])[-1]


def job_log(run: RunDir) -> str:
    """The output of the newest job: the owner's lines and its agents'."""
    newest = run.newest_submission()
    printed = of_run(run).logs(newest.job_id) if newest else ""
    return "".join(line for line in printed.splitlines(keepends=True) if not line.startswith(_NOT_OURS))
