"""A queue in a folder of this machine: a job waits for its turn there, then it owns the run.

The launcher's side; the job itself is owner.py. The state of a job is that of the queue and of the run directory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launchyard.errors import LaunchError
from launchyard.host.environment import own_environment
from launchyard.host.folders import job_folder, log_folder
from launchyard.host.processes import end_marked, python_argv, python_environment, wait_until
from launchyard.launcher.agent.signals import CANCELLED
from launchyard.launcher.agent.start.torchrun_process import WORKER
from launchyard.launcher.backends.base import JobStatus, Planned, Traits, owner_alive, refuse_if_alive
from launchyard.launcher.backends.code import drop_code, keep_code
from launchyard.launcher.backends.example.client import Spool
from launchyard.launcher.backends.example.request import JOB, ExampleRequest, make_request, owner_argv
from launchyard.launcher.backends.handover import hand_over, record_cancel
from launchyard.launcher.backends.request import Ask, Process
from launchyard.run import layout
from launchyard.run.records import Job, Submission
from launchyard.run.rundir import RunDir

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster
    from launchyard.training.recipe import Recipe

OBEY_SECONDS = 5.0  # for an owner that was asked to end, before its processes are ended

TRAITS = Traits(title="the example queue")


# -- planning --------------------------------------------------------------------------------------------------------
def check(recipe: Recipe, cluster: Cluster) -> Iterator[tuple[str, str]]:
    if recipe.resources.nodes > 1:
        yield "resources.nodes", f"{recipe.resources.nodes} nodes, but {cluster.name} is one machine; use 1"


def request(cluster: Cluster, ask: Ask) -> ExampleRequest:
    return make_request(cluster, ask)


def first_process(cluster: Cluster, ask: Ask) -> Process:
    return Process(role="owner", node_rank=0, argv=owner_argv(ask), env=ask.environment)


def node_cpus(cluster: Cluster, gpus: int) -> tuple[int | None, str]:
    """Nothing is asked: what the cluster file leaves out is counted here."""
    return None, ""


def worker_python(cluster: Cluster, here: str) -> str:
    return here


def remembered(plan: dict[str, Any]) -> dict[str, Any]:
    return {"example": ExampleRequest.model_validate(plan["request"]).place}


# -- running ---------------------------------------------------------------------------------------------------------
def submit(run: RunDir, plan: Planned, overrides: dict[str, Any], *, worker_module: str = WORKER) -> Job:
    """Put the job into the queue. UserError if a living job has the run, or the queue takes none.

    worker_module: for tests without torch.
    """
    refuse_if_alive(run)
    planned = plan.request
    assert isinstance(planned, ExampleRequest)
    waiting = Submission(
        backend="example",
        submitted=time.time(),
        env=plan.environment,
        overrides=overrides,
        place=planned.place,
        **plan.shape.model_dump(),
    )
    env = python_environment({**own_environment(), **plan.environment}, code=keep_code(run))

    def start(path: str) -> subprocess.Popen[bytes]:
        argv = [path if argument == JOB else argument for argument in planned.argv]
        with _log_path(run, Path(path).stem).open("ab") as log:
            return subprocess.Popen(
                [*argv, f"--worker-module={worker_module}"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def send(number: int) -> str:
        return Spool(planned.place.get("spool")).submit(planned.text, start)

    return hand_over(run, waiting, send, take_back=lambda number: _take_back(run, number))


def _take_back(run: RunDir, number: int) -> None:
    """Of a job that was refused nothing stays, unless an earlier job has used it."""
    if number == 0:
        drop_code(run)
        if run.local:
            with contextlib.suppress(OSError):
                os.rmdir(run.path(layout.SUBMISSIONS))


def poll(run: RunDir, job: Job) -> JobStatus:
    return spool_of(run).ask(job.job_id)


def notify(run: RunDir, job: Job) -> str:
    spool_of(run).signal(job.job_id, signal.SIGUSR1)
    return "USR1"


def cancel(run: RunDir, job: Job) -> None:
    """Asks its owner first, which ends its workers itself; then ends the rest."""
    run.request_stop(CANCELLED)
    if not wait_until(lambda: not owner_alive(run, job), seconds=OBEY_SECONDS):
        spool_of(run).end(job.job_id)
    end_marked(run.url)
    record_cancel(run, job)
    run.clear_stop()


def job_log(run: RunDir) -> str:
    newest = run.newest_submission()
    path = _log_path(run, newest.job_id) if newest else None
    return path.read_text(errors="replace") if path and path.exists() else ""


def run_on_node(run: RunDir, job: Job, argv: list[str]) -> str:
    if poll(run, job).state == "unknown":
        raise LaunchError(f"job {job.job_id} runs on {job.host}", hint=f"do it on {job.host}")
    done = subprocess.run([*python_argv(sys.executable), *argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LaunchError(f"no process could run beside job {job.job_id}: {done.stderr.strip()[-500:]}")
    return done.stdout


def spool_of(run: RunDir) -> Spool:
    """The queue that the run's newest job was sent to."""
    newest = run.newest_submission()
    return Spool(newest.place.get("spool") if newest else None)


def _log_path(run: RunDir, job_id: str) -> Path:
    """In the run directory; for a remote one in the user's own folder."""
    folder = Path(job_folder(run.url, log_folder()))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / layout.job_output(job_id)
