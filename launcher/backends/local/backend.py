"""This machine: a detached process owns the run. The launcher's side; its owner is owner.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launchyard.errors import LaunchError, NothingRunsError, UserError
from launchyard.host import processes
from launchyard.host.environment import own_environment
from launchyard.host.folders import log_folder, owner_log
from launchyard.host.packages import install_command
from launchyard.host.processes import descendants, end_all, end_marked, python_argv, python_environment, wait_until
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.agent.signals import CANCELLED
from launchyard.launcher.agent.start.torchrun_process import WORKER
from launchyard.launcher.backends.base import JobStatus, Planned, Traits, owner_alive, refuse_if_alive
from launchyard.launcher.backends.code import drop_code, keep_code
from launchyard.launcher.backends.handover import CANCEL_MESSAGE
from launchyard.launcher.backends.request import Ask, Process
from launchyard.run import layout
from launchyard.run.records import Job, OutcomeRecord, Shape
from launchyard.run.rundir import RunDir
from launchyard.storage.errors import StoreError

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster
    from launchyard.training.recipe import Recipe

CANCEL_SECONDS = 5.0
CLAIM_SECONDS = 60.0
TAIL_BYTES = 4_000
TAIL_LINES = 15
OWNER = "launchyard.launcher.backends.local.owner"


TRAITS = Traits(title="this machine", scheduled=False)


# -- planning --------------------------------------------------------------------------------------------------------
def check(recipe: Recipe, cluster: Cluster) -> Iterator[tuple[str, str]]:
    if recipe.resources.nodes > 1:
        yield "resources.nodes", f"{recipe.resources.nodes} nodes, but {cluster.name} is this one machine; use 1"


def request(cluster: Cluster, ask: Ask) -> None:
    """None: there is no scheduler."""


def first_process(cluster: Cluster, ask: Ask) -> Process:
    return Process(role="owner", node_rank=0, argv=owner_argv(ask.python, ask.run_url, ask.shape), env=ask.environment)


def node_cpus(cluster: Cluster, gpus: int) -> tuple[int | None, str]:
    """Nothing is asked: what the cluster file leaves out is counted here."""
    return None, ""


def worker_python(cluster: Cluster, here: str) -> str:
    return here


def remembered(plan: dict[str, Any]) -> dict[str, Any]:
    return {}


def owner_argv(python: str, run_url: str, shape: Shape) -> list[str]:
    options = [f"--nnodes={shape.nnodes}", f"--nproc-per-node={shape.nproc_per_node}", f"--device={shape.device}"]
    return [*python_argv(python), "-m", OWNER, run_url, *options]


# -- running ---------------------------------------------------------------------------------------------------------
def submit(run: RunDir, plan: Planned, overrides: dict[str, Any], *, worker_module: str = WORKER) -> Job:
    """Start the process that owns the run; returns once it has claimed its attempt.

    UserError if a living job has the run, or torch is not installed; NothingRunsError if the process ends before it
    has claimed an attempt.
    """
    if plan.shape.nnodes != 1:
        raise UserError(f"{plan.shape.nnodes} nodes: this machine is one", hint="use --nodes 1, or another --cluster")
    _need_torch()
    refuse_if_alive(run)
    argv = owner_argv(sys.executable, run.url, plan.shape)
    env = plan.environment
    try:
        around = python_environment({**own_environment(), **env}, code=keep_code(run))
        job = _start_owner(run, argv, around, {"overrides": overrides, "worker_module": worker_module})
    except LaunchError:
        if not run.attempts():
            drop_code(run)
        raise
    return job


def poll(run: RunDir, job: Job) -> JobStatus:
    """On this host by its process; nobody can be asked about one on another host."""
    if job.host != socket.gethostname():
        return JobStatus("none")
    if not processes.is_alive(job.pid, job.pid_started):
        return JobStatus("gone")
    if job.is_guest:  # that its program lives says nothing of the run; the heartbeat does
        return JobStatus("none")
    return JobStatus("running", f"that process {job.pid} is there")


def notify(run: RunDir, job: Job) -> str:
    """A preemption notice, as a scheduler would send it."""
    if job.is_guest:
        run.give_notice(job.attempt, "preempted")
        return "a notice in its run directory"
    _signal_owner(job, signal.SIGUSR1)
    return "USR1"


def cancel(run: RunDir, job: Job) -> None:
    """Ends the run now: asks its owner, and after a few seconds ends its process tree. Nothing is left running.

    The program around an owner is never ended: LaunchError if that run does not end by itself.
    """
    _need_here(job)
    with contextlib.suppress(StoreError):  # it ends without the store as well
        run.request_stop(CANCELLED)
    if not wait_until(lambda: not owner_alive(run, job), seconds=CANCEL_SECONDS):
        _refuse_guest(job)
        end_all(descendants(job.pid))
    end_marked(run.url)
    record = OutcomeRecord(
        outcome="stopped", reason=CANCELLED, message=CANCEL_MESSAGE, attempt=job.attempt, time=time.time()
    )
    if run.outcome(job.attempt) is None:
        run.write_outcome(record)
    if not is_final(run):
        run.write_outcome(record, of_run=True)


def run_on_node(run: RunDir, job: Job, argv: list[str]) -> str:
    """The output of Python with these arguments, on this machine."""
    _need_here(job)
    done = subprocess.run([*python_argv(sys.executable), *argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LaunchError(f"no process could run on {job.host}: {done.stderr.strip()[-500:]}")
    return done.stdout


def job_log(run: RunDir) -> str:
    """The output of the owner and its agent."""
    path = _log_path(run)
    return Path(path).read_text(errors="replace") if os.path.exists(path) else ""


def is_final(run: RunDir) -> bool:
    """Returns True if the run has an outcome, written for its newest attempt."""
    record = run.outcome()
    job = newest_job(run)
    return record is not None and job is not None and record.attempt >= job.attempt


def _refuse_guest(job: Job) -> None:
    if job.is_guest:
        raise LaunchError(
            f"attempt {job.attempt} has been asked to end, and is still at work inside {job.job_id}, process {job.pid}",
            hint="it ends after its step; end that program to end it now",
        )


def _need_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise UserError("torch is not installed here, and workers need it", hint=install_command("train"))


def _need_here(job: Job) -> None:
    if job.host != socket.gethostname():
        raise UserError(f"attempt {job.attempt} runs on {job.host}, process {job.pid}", hint=f"do it on {job.host}")


def _signal_owner(job: Job, number: signal.Signals) -> None:
    _need_here(job)
    try:
        os.kill(job.pid, number)
    except ProcessLookupError:
        raise UserError(f"process {job.pid} of attempt {job.attempt} is gone", hint="launch status") from None


def _log_path(run: RunDir) -> str:
    """In the run directory; for a remote one in the user's own folder of this machine."""
    if run.local:
        os.makedirs(run.url, exist_ok=True)
        return run.path(layout.JOB_LOG)
    folder = log_folder()
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return owner_log(run.url, folder)


# -- starting the owner ----------------------------------------------------------------------------------------------
def _start_owner(run: RunDir, argv: list[str], env: dict[str, str], request: dict[str, Any]) -> Job:
    """Returns the job that it has claimed. UserError if it refuses; NothingRunsError if it ends without an answer."""
    ours, theirs = socket.socketpair()
    path = _log_path(run)
    began = os.path.getsize(path) if os.path.exists(path) else 0
    with ours, open(path, "ab") as log:
        with theirs:
            owner = subprocess.Popen(
                argv, stdin=theirs.fileno(), stdout=log, stderr=log, env=env, start_new_session=True
            )
        answer = _ask(ours, owner, json.dumps(request).encode())
    if not answer:
        raise NothingRunsError(
            f"the job ended (exit code {owner.wait()}) before it claimed an attempt; it printed:\n{_tail(path, began)}",
            hint="launch doctor examines this machine",
        )
    if "job" not in answer:
        owner.wait()
        raise UserError(answer["error"], hint=answer.get("hint"))
    owner.returncode = 0  # it is meant to outlive us: no warning, and nobody waits for it
    return Job.model_validate(answer["job"])


def _ask(ours: socket.socket, owner: subprocess.Popen[bytes], request: bytes) -> dict[str, Any]:
    """The owner's answer about its claim: {"job": …} or {"error": …, "hint": …}; empty if it died before that."""
    raw = b""
    ours.settimeout(CLAIM_SECONDS)
    try:
        ours.sendall(request)
        ours.shutdown(socket.SHUT_WR)
        while part := ours.recv(65536):
            raw += part
    except TimeoutError:
        owner.kill()
        owner.wait()
        raise NothingRunsError(
            f"the job did not claim its attempt within {CLAIM_SECONDS:.0f} s and was ended"
        ) from None
    except ConnectionError:  # it died and had not read all of the request
        pass
    return dict(json.loads(raw)) if raw else {}


def _tail(path: str, began: int) -> str:
    """The last lines that were printed since the log had this size."""
    with open(path, "rb") as log:
        log.seek(began)
        lines = log.read()[-TAIL_BYTES:].decode(errors="replace").strip().splitlines()
    return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:]) or "  nothing"
