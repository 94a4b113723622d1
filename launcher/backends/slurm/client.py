"""The state of jobs at SLURM, by squeue, scontrol and scancel: sacct is off at many sites, and late at others.

Every command is bounded in time: a controller that is away must not hold up the caller.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from launchyard.errors import LaunchError, UserError
from launchyard.host.environment import own_environment
from launchyard.launcher.agent.liveness import Answer
from launchyard.launcher.backends.base import JobStatus

ANSWER_SECONDS = 11.0  # SLURM's own commands give up after 9
SUBMIT_SECONDS = 180.0  # sbatch of a busy site, or a wrapper of it, may take more than a minute
FIND_SECONDS = 30.0  # in which a job that sbatch may have queued comes into sight
AWAY_SECONDS = 20.0  # for which a controller that did not answer is not asked again about other jobs
_STATES: dict[Answer, tuple[str, ...]] = {
    "queued": ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
    "running": ("RUNNING", "CONFIGURING", "SIGNALING", "STAGE_OUT", "RESIZING"),
    "suspended": ("SUSPENDED", "STOPPED"),
    "ending": ("COMPLETING",),
    "gone": (
        "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE",
        "PREEMPTED", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL",
    ),
}  # fmt: skip
_AWAY = ("Unable to contact slurm controller", "slurm_load_jobs error", "Socket timed out", "Connection refused")
# Errors of sbatch after which the job may be queued all the same: the request was sent, and the answer did not come.
_UNSURE = ("Socket timed out", "Zero Bytes were transmitted", "Unexpected message received")
_NEVER = ("Requested node configuration is not available", "Node count specification invalid", "Invalid feature")
_SENDING = ("sbatch", "srun")  # these give their own variables to a job
_NO_JOB = ("Invalid job id", "Invalid Job Id")
# SLURM's reason of a wait -> the same in plain English, with a fix where there is one.
REASONS = {
    "Priority": "other jobs have a higher priority",
    "Resources": "the nodes it needs are in use",
    "Dependency": "it waits for another job",
    "DependencyNeverSatisfied": "it waits for a job that has failed",
    "BeginTime": "the scheduler holds it for a while before it starts again",
    "JobHeldUser": "it is held by its owner: scontrol release",
    "JobHeldAdmin": "it is held by an administrator",
    "PartitionTimeLimit": "its time limit is above the partition's: lower resources.time_limit",
    "PartitionNodeLimit": "it asks for more nodes than the partition gives: lower --nodes",
    "PartitionDown": "its partition is down",
    "ReqNodeNotAvail": "a node it asks for is not available",
    "QOSMaxJobsPerUserLimit": "you run as many jobs as your quality of service allows",
    "AssocGrpCpuLimit": "your account uses all CPUs it may have",
    "AssocGrpGRES": "your account uses all GPUs it may have",
    "QOSMaxGRESPerUser": "you use all GPUs that your quality of service allows",
    "QOSGrpGRES": "all GPUs of your quality of service are in use",
    "launch failed requeued held": "its start failed and it is held: scontrol release, after a check of the node",
}


class JobFacts(NamedTuple):
    """A job at scontrol. preempted: SLURM has told it to make room, or has ended it for that, in this start of it."""

    state: str = ""
    restarts: int = 0
    preempted: bool = False


SUSPENDED = "its processes are stopped until SLURM lets them go on (scontrol resume)"
AWAY = JobStatus("unknown", reason="SLURM's controller does not answer")
_away: dict[str, float] = {}  # site -> when it did not answer, by the monotonic clock


class Controller:
    """SLURM's controller, through its own commands, with these variables on top of ours (such as SLURM_CONF)."""

    def __init__(self, env: dict[str, str]) -> None:
        self._env = env

    def ask(self, job_id: str) -> JobStatus:
        """The state of a job."""
        site = self._env.get("SLURM_CONF", "")
        if time.monotonic() - _away.get(site, float("-inf")) < AWAY_SECONDS:
            return AWAY
        done = self.run(["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T|%r|%N|%S|%e"])
        if done is None and shutil.which("squeue") is None:
            return JobStatus("unknown", reason="squeue is not found here")
        if done is None or (_contains_any(done.stderr, _AWAY) and not _contains_any(done.stderr, _NO_JOB)):
            _away[site] = time.monotonic()
            return AWAY
        return _status(done)

    def config(self) -> dict[str, str]:
        """The site's configuration as the controller has it; empty if it does not answer."""
        return facts(self.output_of(["scontrol", "show", "config"]))

    def partitions(self, name: str = "") -> list[dict[str, str]]:
        """All of them, or one; none if the controller does not answer or there is no such."""
        shown = self.output_of(["scontrol", "show", "partition", *([name] if name else [])])
        return [facts(block) for block in re.split(r"\n\s*\n", shown) if "PartitionName=" in block]

    def hostnames(self, nodes: str) -> list[str]:
        """The nodes that an expression like node[1-3] stands for."""
        return self.output_of(["scontrol", "show", "hostnames", nodes]).split() if nodes else []

    def job_facts(self, job_id: str) -> JobFacts:
        """What scontrol shows of a job; the defaults if it is not known."""
        found = facts(self.output_of(["scontrol", "show", "job", job_id]))
        state = found.get("JobState", "")
        preempted = state == "PREEMPTED" or _time(found.get("PreemptTime", "None")) is not None
        return JobFacts(state, int(found.get("Restarts", "0")), preempted)

    def end_time(self, job_id: str) -> float | None:
        """The end of the job's time; None: never, or not known."""
        done = self.run(["squeue", "--noheader", f"--jobs={job_id}", "--format=%e"])
        return _time(done.stdout.strip()) if done is not None else None

    def requeue(self, job_id: str) -> bool | None:
        """Requeues the job. Returns False if the site refuses that, None if the controller does not answer."""
        if shutil.which("scontrol") is None:
            return False
        done = self.run(["scontrol", "requeue", job_id])
        if done is None or (done.returncode and _contains_any(done.stderr, _AWAY)):
            return None
        return done.returncode == 0

    def cancel(self, job_id: str, *, signal: str | None = None) -> None:
        """scancel, or only a signal to all steps. LaunchError if the controller does not take it."""
        argv = ["scancel", *([f"--signal={signal}"] if signal else []), job_id]
        done = self.run(argv)
        if done is None or (done.returncode and not _contains_any(done.stderr, _NO_JOB)):
            detail = "no answer" if done is None else done.stderr.strip()
            raise LaunchError(
                f"SLURM could not end job {job_id}: {detail}", hint="try again when its controller is back"
            )

    def submit(self, script: str, *, dependency: str | None = None, known: Collection[str] = ()) -> str:
        """sbatch; the job's id. UserError with SLURM's reason if it refuses.

        Where sbatch gives no id, the job is looked for by its name: it may be queued all the same.
        known: ids of older jobs with that name.
        """
        if shutil.which("sbatch") is None:
            raise UserError(
                "sbatch is not found here", hint="launch from a login node of the cluster, or try --dry-run"
            )
        if dependency is None:
            self._refuse_the_impossible(script)
        after = [f"--dependency={dependency}"] if dependency else []
        done = self.run(["sbatch", "--parsable", *after, script], seconds=SUBMIT_SECONDS)
        if done is None:
            return self._find_submitted(script, known, f"sbatch did not answer within {SUBMIT_SECONDS:.0f} s")
        if done.returncode and _contains_any(done.stderr, _UNSURE):
            return self._find_submitted(script, known, f"sbatch got no answer ({refusal(done.stderr)})")
        if done.returncode:
            raise UserError(f"SLURM refuses the job: {refusal(done.stderr)}")
        return _id_in(done.stdout) or self._find_submitted(
            script, known, f"sbatch printed no job id, but {done.stdout.strip()!r}"
        )

    def _find_submitted(self, script: str, known: Collection[str], problem: str) -> str:
        """The id of the newest job with the script's name that is not known. LaunchError if none comes into sight."""
        name = _job_name(script)
        until = time.monotonic() + FIND_SECONDS
        while True:
            found = self.jobs_named(name)
            answered = found is not None
            if new := [job_id for job_id in found or () if job_id not in known]:
                return new[-1]
            if time.monotonic() > until:
                break
            time.sleep(1.0)
        queue = "no such job is in the queue" if answered else "the queue cannot be read either"
        raise LaunchError(
            f"{problem}, and {queue}", hint=f"is the controller up? (sinfo) Before another try: squeue --name={name}"
        )

    def jobs_named(self, name: str) -> list[str] | None:
        """Ids of the user's jobs of this name that wait or run, oldest first; None without an answer."""
        done = self.run(["squeue", "--noheader", f"--user={os.getuid()}", f"--name={name}", "--format=%i"])
        if done is None or done.returncode:
            return None
        return sorted(done.stdout.split(), key=int)

    def _refuse_the_impossible(self, script: str) -> None:
        """UserError with SLURM's reason for a job that can never run: most sites queue it, and it waits for ever."""
        done = self.run(["sbatch", "--test-only", script])
        if done is not None and done.returncode and _contains_any(done.stderr, _NEVER):
            raise UserError(f"SLURM refuses the job: {refusal(done.stderr)}")

    def wait_gone(self, job_id: str, *, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not ((seen := self.ask(job_id)).is_over or seen.state == "unknown"):
            if time.monotonic() > until:
                return False
            time.sleep(0.5)
        return True

    def output_of(self, argv: list[str]) -> str:
        """The output of a command; empty if it fails."""
        done = self.run(argv)
        return done.stdout if done is not None and done.returncode == 0 else ""

    def run(
        self,
        argv: list[str],
        *,
        seconds: float = ANSWER_SECONDS,
        stdin: str | None = None,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str] | None:
        """None: no answer in time, or no such program here. `env`: on top of the rest."""
        around = {**own_environment(), **self._env, **(env or {})}
        if argv[0] not in _SENDING:
            around |= {"SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"}
        try:
            return subprocess.run(
                argv, input=stdin or "", capture_output=True, text=True, timeout=seconds, env=around, check=False
            )
        except (subprocess.TimeoutExpired, FileNotFoundError):
            return None


def facts(text: str) -> dict[str, str]:
    """The KEY = VALUE lines of `scontrol show config`, or the KEY=VALUE pairs of other answers."""
    if re.search(r"^\w+\s+= ", text, re.MULTILINE):
        found = re.findall(r"^(\w+)\s*= (.*)$", text, re.MULTILINE)
    else:
        found = re.findall(r"(\w+)=(\S+)", text)
    return {key: value.strip() for key, value in found}


def _id_in(printed: str) -> str | None:
    """The job's id, which `sbatch --parsable` prints in a line of its own; sites and wrappers print more around it."""
    found = re.findall(r"^\s*(\d+)(?:;\S*)?\s*$", printed, re.MULTILINE)
    return found[-1] if found else None


def _job_name(script: str) -> str:
    """The name in the script's options, as sbatch reads it; without one it is the script's file name."""
    found = re.search(r"^#SBATCH --job-name=(.+)$", Path(script).read_text(), re.MULTILINE)
    return shlex.split(found[1])[0] if found else Path(script).name


def _contains_any(text: str, marks: tuple[str, ...]) -> bool:
    return any(mark in text for mark in marks)


def _status(done: subprocess.CompletedProcess[str]) -> JobStatus:
    """The state of a job in an answer of squeue; `unknown` if it is none of its own."""
    if done.returncode:
        if _contains_any(done.stderr, _NO_JOB):
            return JobStatus("forgotten")
        return JobStatus("unknown", reason=f"squeue fails: {last_line(done.stderr) or f'code {done.returncode}'}")
    printed = done.stdout.strip()
    found = [parts for line in printed.splitlines() if len(parts := line.strip().split("|")) == 5]
    if not found:
        told = f"squeue printed no state of the job, but {last_line(printed)!r}"
        return JobStatus("unknown", reason=told) if printed else JobStatus("forgotten")
    state, reason, nodes, start, end = found[-1]
    answer = next((answer for answer, states in _STATES.items() if state in states), None)
    if answer is None:
        return JobStatus("unknown", state, f"squeue gives the job a state that is not known here: {state}")
    why = SUSPENDED if answer == "suspended" else describe_reason(reason)
    return JobStatus(answer, state, why, nodes, _time(start), _time(end))


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def describe_reason(reason: str) -> str:
    """SLURM's reason in plain English, or as it is if unknown. Empty for a job that does not wait."""
    reason = reason.strip("()")
    if reason in ("", "None"):
        return ""
    known = REASONS.get(reason) or REASONS.get(reason.partition(",")[0])  # ReqNodeNotAvail, UnavailableNodes:…
    return f"{known} ({reason})" if known else reason


def refusal(printed: str) -> str:
    """The message of sbatch for a refused job, with the place to fix."""
    lines = (line.removeprefix("sbatch: ").removeprefix("error: ") for line in printed.strip().splitlines())
    text = " ".join(line.removeprefix("allocation failure: ") for line in lines)
    fixes = {
        "Invalid partition": "slurm.partition of the cluster file; the partitions: sinfo -s",
        "Invalid account": "slurm.account of the cluster file; yours: sacctmgr show user -s $USER",
        "Invalid qos": "slurm.qos of the cluster file",
        "Invalid feature": "slurm.constraint of the cluster file; the features: sinfo -o '%P %f'",
        "Node count": "--nodes, or the partition: sinfo -o '%P %D'",
        "Requested node configuration": "--nodes, and node of the cluster file; the nodes: sinfo -o '%P %D %c %m %G'",
        "time limit": "resources.time_limit, or slurm.time_limit; the limits: sinfo -o '%P %l'",
        "Unable to contact": "is the controller up? (sinfo)",
    }
    fix = next((fix for mark, fix in fixes.items() if mark.lower() in text.lower()), None)
    return f"{text} (see {fix})" if fix else text


def _time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # N/A, NONE, Unknown
        return None
