"""Findings about SLURM, the partition and the nodes, and their meaning for a run that must survive.

Facts behind the findings: the receivers of a signal depend on the process tracking, the time to save on GraceTime and
KillWait, a restart on JobRequeue.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from launchyard.host.folders import log_folder
from launchyard.launcher.backends.cluster import Cluster, store_environment
from launchyard.launcher.backends.findings import Finding, node_findings
from launchyard.launcher.backends.request import Ask
from launchyard.launcher.backends.slurm.client import Controller, refusal
from launchyard.launcher.backends.slurm.nodes import node_cpus
from launchyard.launcher.backends.slurm.request import (
    agent_python,
    options_of,
    sbatch_text,
    srun_argv,
    worker_python,
)
from launchyard.run.records import Shape
from launchyard.storage import files

JOB_SECONDS = 120.0
LEAST_NOTICE = 60  # seconds
PROBE = "launchyard.launcher.doctor.node_probe"
ON_NODES = ("scontrol", "squeue", "sbatch")  # of SLURM's commands, besides srun: for the owner of a run
ROUNDING = 30  # seconds


def doctor(cluster: Cluster, folder: str | None, saves: Sequence[float]) -> Iterator[Finding]:
    """`folder`: for the answer of a job on the nodes; None: no job."""
    missing = [name for name in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(name) is None]
    if missing:
        fix = "run this on a login node of the cluster"
        yield Finding(what="SLURM", level="error", found=f"{', '.join(missing)} not found here", fix=fix)
        return
    slurm = Controller(cluster.environment)
    config = slurm.config()
    if not config:
        fix = "is the controller up, and SLURM_CONF right? (sinfo)"
        yield Finding(what="SLURM", level="error", found="the controller does not answer", fix=fix)
        return
    yield Finding(what="SLURM", level="ok", found=config.get("SLURM_VERSION", "unknown version"))
    partition = _partition(cluster, slurm)
    if partition is None:
        name = options_of(cluster).partition
        known = slurm.output_of(["sinfo", "--noheader", "--format=%R"]).split()
        fix = f"slurm.partition in the cluster file; there are: {', '.join(sorted(set(known)))}"
        yield Finding(what="partition", level="error", found=f"there is no partition {name}", fix=fix)
        return
    yield from _limits(cluster, partition)
    yield from _preemption(cluster, config, partition)
    yield from _notice(cluster, config, partition, sorted(saves))
    cpus, note = node_cpus(cluster, cluster.node.gpus or 0)
    if note:
        fix = f"node.cpus: {cpus or 'of a node: sinfo -o %c'} in the cluster file"
        yield Finding(what="CPUs", level="warning", found=note, fix=fix)
    if cpus is not None:
        cluster = cluster.model_copy(update={"node": cluster.node.model_copy(update={"cpus": cpus})})
    yield from _submission(cluster, slurm)
    if folder is not None:
        yield from _nodes(cluster, slurm, folder)


def _partition(cluster: Cluster, slurm: Controller) -> dict[str, str] | None:
    """The one that jobs go to: named, or the site's default."""
    name = (options_of(cluster).partition or "").split(",")[0]
    every = slurm.partitions(name)
    if name:
        return next((one for one in every if one.get("PartitionName") == name), None)
    return next((one for one in every if one.get("Default") == "YES"), every[0] if every else None)


def _limits(cluster: Cluster, partition: dict[str, str]) -> Iterator[Finding]:
    name = partition.get("PartitionName", "?")
    state = partition.get("State", "UP")
    nodes = partition.get("TotalNodes", "?")
    limit = partition.get("MaxTime", "?")
    found = f"{name} · {nodes} nodes · at most {limit} an attempt"
    if state != "UP":
        yield Finding(what="partition", level="error", found=f"{found} · {state}", fix="wait, or use another")
    elif not options_of(cluster).time_limit and partition.get("DefaultTime", "NONE") == "NONE" and limit == "UNLIMITED":
        yield Finding(what="partition", level="ok", found=f"{found}; no limit: a run ends when it is complete")
    else:
        yield Finding(what="partition", level="ok", found=f"{found}; longer runs go on in the next attempt")


def _preemption(cluster: Cluster, config: dict[str, str], partition: dict[str, str]) -> Iterator[Finding]:
    tracking = config.get("ProctrackType", "").removeprefix("proctrack/")
    yield Finding(what="process tracking", level="ok", found=f"{tracking}: signals reach the agents either way")
    if config.get("JobRequeue", "1") == "1":
        yield Finding(what="requeue", level="ok", found="allowed: a preempted run is started again as the same job")
    else:
        found = "JobRequeue=0: a run goes on as a new job after each preemption"
        yield Finding(what="requeue", level="ok", found=found)
    accounting = config.get("AccountingStorageType", "").removeprefix("accounting_storage/")
    yield Finding(
        what="accounting", level="ok", found=f"{accounting or 'none'}; not needed: squeue and scontrol suffice"
    )
    mode = partition.get("PreemptMode", config.get("PreemptMode", "OFF"))
    if mode.startswith("CANCEL"):
        yield Finding(
            what="preemption",
            level="warning",
            found=f"PreemptMode={mode}: SLURM cancels a preempted job; the run puts it back, if it can save in time",
            fix="if it cannot, launch resume goes on with it; a partition with PreemptMode=REQUEUE does by itself",
        )


def _notice(
    cluster: Cluster, config: dict[str, str], partition: dict[str, str], saves: Sequence[float]
) -> Iterator[Finding]:
    """Compares the time to save with that of the saves so far."""
    kill_wait = _seconds(config.get("KillWait", "30"))
    grace = _seconds(partition.get("GraceTime", "0"))
    asked = options_of(cluster).notice_seconds
    have = f"GraceTime {grace} s + KillWait {kill_wait} s when preempted, {asked} s before the time limit"
    if not saves:
        yield Finding(what="time to save", level="ok", found=f"{have}; no save measured here yet")
        return
    slowest = saves[-1]
    wanted = max(LEAST_NOTICE, math.ceil(3 * slowest / ROUNDING) * ROUNDING)
    found = f"{have}; the slowest of {len(saves)} saves took {slowest:.1f} s"
    if asked < 2 * slowest:
        yield Finding(what="time to save", level="error", found=found, fix=f"slurm.notice_seconds: {wanted}")
    elif grace + kill_wait < 1.25 * slowest:
        fix = "checkpoint.every_minutes bounds what a preemption costs; a partition with GraceTime costs nothing"
        yield Finding(what="time to save", level="warning", found=found, fix=fix)
    else:
        yield Finding(what="time to save", level="ok", found=found)


def _seconds(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def _submission(cluster: Cluster, slurm: Controller) -> Iterator[Finding]:
    """Asks sbatch if it would take a job like ours."""
    ask = Ask(
        run_id="launchyard-doctor",
        run_url="/tmp/doctor",  # noqa: S108 - only named
        shape=Shape(nproc_per_node=1, device="cpu"),
        gpus=cluster.node.gpus or 0,
        sizes=(1,),
        python=sys.executable,
        logs="",
        time_limit=options_of(cluster).time_limit or "1",
    )
    text = sbatch_text(cluster, ask, log="/dev/null", code="/nonexistent")
    done = slurm.run(["sbatch", "--test-only"], stdin=text)
    if done is None or done.returncode:
        detail = "no answer" if done is None else refusal(done.stderr)
        yield Finding(what="job", level="error", found=detail, fix="the section slurm and node of the cluster file")
    else:
        yield Finding(what="job", level="ok", found=done.stderr.strip().removeprefix("sbatch: "))


def _nodes(cluster: Cluster, slurm: Controller, folder: str) -> Iterator[Finding]:
    """From a node itself: the environment, the way back, the storage."""
    token = secrets.token_hex(8)
    files.write(f"{folder}/{token}", token.encode())
    options = options_of(cluster)
    argv = srun_argv(cluster, nnodes=1)
    chosen = {"partition": options.partition, "account": options.account, "qos": options.qos}
    chosen |= {"constraint": options.constraint, "exclude": options.exclude, "time": "2", "immediate": "60"}
    argv[1:1] = [f"--{key}={value}" for key, value in chosen.items() if value]
    python = worker_python(cluster, sys.executable)
    env = {**cluster.environment, **store_environment(cluster.storage.options)}
    # Of a run in a store, the script, its output and the code lie in a folder of the user.
    home = [log_folder()] if files.is_remote(folder) else []
    for path in home:
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
    done = slurm.run(
        [*argv, *agent_python(cluster, sys.executable, code=None), "-m", PROBE, folder, token, *ON_NODES, *home],
        seconds=JOB_SECONDS,
        env=env,
    )
    answers = re.findall(r"\{.*\}", done.stdout) if done is not None else []
    if not answers:
        detail = (
            "no node became free within a minute" if done is None or "immediate" in done.stderr else done.stderr.strip()
        )
        fix = f"is {python} on the nodes, with launchyard in it? setup and container of the cluster file"
        yield Finding(what="node", level="error", found=detail[-500:], fix=fix)
        return
    seen = json.loads(answers[0])
    yield from node_findings(seen)
    yield from _commands(seen["host"], [name for name in seen["missing"] if name in ON_NODES])
    yield from _home(seen["host"], [path for path in seen["missing"] if path in home])


def _home(host: str, missing: Sequence[str]) -> Iterator[Finding]:
    """A job whose script's folder is not there ends before anything of it has begun, and leaves no word."""
    for path in missing:
        found = f"{host} does not see {path}, where the script, the code and the output of a run in a store lie"
        fix = "XDG_STATE_HOME where you launch: a folder that all nodes see; or a folder of theirs as `storage`"
        yield Finding(what="home from a node", level="error", found=found, fix=fix)


def _commands(host: str, missing: Sequence[str]) -> Iterator[Finding]:
    """Compares SLURM's commands on a node with those that a run needs there to be started again."""
    if not missing:
        yield Finding(what="commands on a node", level="ok", found=f"{host} has {', '.join(ON_NODES)}")
        return
    found = f"{host} lacks {', '.join(missing)}"
    if {"scontrol", "sbatch"} <= set(missing):
        found += ": a run cannot put itself back; it waits for SLURM to do it, and ends at its time limit"
    elif "scontrol" in missing:
        found += ": a run goes on as a new job after each preemption"
    fix = "have the nodes install SLURM's client commands, or put their folder on PATH in `setup` of the cluster file"
    yield Finding(what="commands on a node", level="warning", found=found, fix=fix)
