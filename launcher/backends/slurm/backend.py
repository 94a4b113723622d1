"""SLURM: a job that owns the run, waits in the queue, and is started again by the scheduler when it was preempted.

The launcher's side; inside the job launcher/backends/slurm/owner.py is the owner. The state of a job is that of
squeue and of the run directory.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launchyard.errors import LaunchError
from launchyard.host.folders import job_folder, log_folder
from launchyard.host.processes import python_argv
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.agent.signals import CANCELLED
from launchyard.launcher.backends.base import JobStatus, Planned, Traits, refuse_if_alive
from launchyard.launcher.backends.code import drop_code, keep_code
from launchyard.launcher.backends.handover import hand_over, record_cancel
from launchyard.launcher.backends.request import Ask, Process, Request
from launchyard.launcher.backends.slurm.client import Controller
from launchyard.launcher.backends.slurm.nodes import node_cpus as node_cpus
from launchyard.launcher.backends.slurm.request import agent_argv, make_request, options_of
from launchyard.launcher.backends.slurm.request import worker_python as worker_python
from launchyard.run import layout
from launchyard.run.records import SCANCEL, Job, Submission
from launchyard.run.rundir import RunDir
from launchyard.training.sections.duration import seconds_of

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster
    from launchyard.training.recipe import Recipe

STEP_SECONDS = 60.0
CANCEL_SECONDS = 90.0  # KillWait is 30 s at most sites


TRAITS = Traits(
    title="SLURM",
    waits_for_jobs=True,
    has_time_limit=True,
    has_spares=True,
    notices_silence=True,
    cancelled_reason=SCANCEL,
)


# -- planning --------------------------------------------------------------------------------------------------------
def check(recipe: Recipe, cluster: Cluster) -> Iterator[tuple[str, str]]:
    options = options_of(cluster)
    limit = seconds_of(recipe.resources.time_limit or options.time_limit or "")
    if limit is not None and limit <= options.notice_seconds:
        what = f"{limit} s, of which the last {options.notice_seconds} are to save in (slurm.notice_seconds)"
        yield "resources.time_limit", f"{what}; nothing could be trained: use more"


def request(cluster: Cluster, ask: Ask) -> Request:
    return make_request(cluster, ask)


def first_process(cluster: Cluster, ask: Ask) -> Process:
    return Process(role="agent", node_rank=0, argv=agent_argv(cluster, ask), env=ask.environment)


def remembered(plan: dict[str, Any]) -> dict[str, Any]:
    return {}


# -- running ---------------------------------------------------------------------------------------------------------
def submit(run: RunDir, plan: Planned, overrides: dict[str, Any]) -> Job:
    """Send the script to sbatch. UserError with SLURM's reason if it refuses; nothing is queued then."""
    _adopt_unanswered(run, plan)
    refuse_if_alive(run)
    assert plan.request is not None
    script = plan.request.text
    env = plan.environment
    waiting = Submission(
        backend="slurm",
        submitted=time.time(),
        env=env,
        agent=plan.agent,
        overrides=overrides,
        **plan.shape.model_dump(),
    )

    before = newest_job(run)
    known = () if before is None else (before.job_id,)

    def send(number: int) -> str:
        return Controller(env).submit(_write_script(run, number, script), known=known)

    return hand_over(run, waiting, send, take_back=lambda number: _take_back(run, number))


def _adopt_unanswered(run: RunDir, plan: Planned) -> None:
    """Records the job that a launcher had sent when it was killed, if it is in the queue: it has the run."""
    number = run.unanswered()
    if number is None:
        return
    known = {submission.job_id for submission in run.submissions()}
    jobs = Controller(plan.environment).jobs_named(plan.run_id)
    if jobs is None:
        raise LaunchError(
            f"a job of {plan.run_id} may be in the queue already, and SLURM's controller does not answer",
            hint="try again when it is back: sinfo",
        )
    if new := [job_id for job_id in jobs if job_id not in known]:
        run.accepted(number, new[-1])


def _write_script(run: RunDir, number: int, script: str) -> str:
    """Writes the script and the code that it runs to a folder that the nodes see."""
    folder = Path(job_folder(run.url, log_folder()))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    keep_code(run)
    path = folder / layout.job_script(number)
    path.write_text(script)
    return str(path)


def _take_back(run: RunDir, number: int) -> None:
    """Removes all that was written for a refused job: its script, and the code unless an earlier job has used it."""
    folder = Path(job_folder(run.url, log_folder()))
    (folder / layout.job_script(number)).unlink(missing_ok=True)
    if number == 0:
        drop_code(run)
        submissions = folder / layout.SUBMISSIONS
        for empty in (submissions,) if run.local else (submissions, folder):
            with contextlib.suppress(OSError):
                empty.rmdir()


def poll(run: RunDir, job: Job) -> JobStatus:
    """The job as the scheduler sees it."""
    return controller(run).ask(job.job_id)


def controller(run: RunDir) -> Controller:
    """The SLURM of the run's place."""
    newest = run.newest_submission()
    return Controller(newest.env if newest else {})


def notify(run: RunDir, job: Job) -> str:
    """A real preemption where the site allows one; else as a scheduler warns: all agents, not the batch script."""
    from launchyard.launcher.backends.slurm.preempt import preempt

    slurm = controller(run)
    sent, refused = preempt(slurm, job.job_id)
    if refused:
        slurm.cancel(job.job_id, signal="USR1")
        return f"USR1, as before a time limit ({refused})"
    return sent


def cancel(run: RunDir, job: Job) -> None:
    """scancel; returns when SLURM has ended all of it."""
    run.request_stop(CANCELLED)
    slurm = controller(run)
    slurm.cancel(job.job_id)
    if not slurm.wait_gone(job.job_id, seconds=CANCEL_SECONDS):
        raise LaunchError(f"job {job.job_id} is still ending", hint=f"squeue -j {job.job_id}")
    record_cancel(run, job)
    run.clear_stop()


def run_on_node(run: RunDir, job: Job, argv: list[str]) -> str:
    """The output of Python with these arguments, as a step on the run's last node. LaunchError if it fails."""
    slurm = controller(run)
    nodes = slurm.hostnames(slurm.ask(job.job_id).nodes)
    if not nodes:
        raise LaunchError(f"job {job.job_id} has no nodes now", hint="launch status")
    last = _last_node(run, job) or nodes[-1]
    beside = [f"--jobid={job.job_id}", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={last}", "--mem=0"]
    done = slurm.run(["srun", *beside, *python_argv(sys.executable), *argv], seconds=STEP_SECONDS)
    if done is None or done.returncode:
        raise LaunchError(f"no step could run on {last}: {'no answer' if done is None else done.stderr.strip()}")
    return done.stdout


def _last_node(run: RunDir, job: Job) -> str | None:
    """Of those that take part in the attempt; None before it has any."""
    name = layout.nodes(job.attempt)
    return str(run.read_json(name)[-1]["node"]) if run.exists(name) else None


def job_log(run: RunDir) -> str:
    """The output of the newest job: the owner's lines, and its agents' behind their numbers."""
    newest = run.newest_submission()
    path = Path(job_folder(run.url, log_folder())) / layout.job_output(newest.job_id) if newest else None
    return path.read_text(errors="replace") if path and path.exists() else ""
