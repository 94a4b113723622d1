"""SLURM's commands without SLURM: small programs in a folder that goes first on PATH, and a test that turns the knobs.

All they know is one JSON file. Jobs run here, as processes of this user; what the programs print is what SLURM 22.05
prints (recorded on `launch sandbox up slurm`). Imports nothing but the standard library: each command is a process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAMS = ("sbatch", "squeue", "scontrol", "scancel", "srun", "sinfo")
AGENT = "launchyard.launcher.backends.slurm.agent"
FIRST_JOB = 1001
LIMIT_SECONDS = 3600
KILL_WAIT_SECONDS = 2.0
POLL_SECONDS = 0.03
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED")
AWAY = "Unable to contact slurm controller (connect failure)"
NO_JOB = "slurm_load_jobs error: Invalid job id specified"
NODES = ["node1", "node2", "node3", "node4"]
CONFIG = {
    "AccountingStorageType": "accounting_storage/none",
    "JobRequeue": "1",
    "KillWait": "30 sec",
    "PreemptMode": "REQUEUE",
    "PreemptType": "preempt/partition_prio",
    "ProctrackType": "proctrack/cgroup",
    "SlurmctldHost[0]": "head(127.0.0.1)",
    "SLURM_VERSION": "22.05.8",
}
PARTITION = """PartitionName={name}
   AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL
   AllocNodes=ALL Default={Default} QoS=N/A
   DefaultTime=01:00:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime={GraceTime} Hidden=NO
   MaxNodes=UNLIMITED MaxTime=1-00:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED
   Nodes=node[1-4]
   PriorityJobFactor=1 PriorityTier={PriorityTier} RootOnly=NO ReqResv=NO OverSubscribe=NO
   OverTimeLimit=NONE PreemptMode={PreemptMode}
   State={State} TotalCPUs=32 TotalNodes=4 SelectTypeParameters=NONE
   TRES=cpu=32,mem=64G,node=4,billing=32
"""
_PLAIN = {"Default": "NO", "GraceTime": "0", "PriorityTier": "1", "PreemptMode": "OFF", "State": "UP"}
PARTITIONS: dict[str, dict[str, str]] = {
    "batch": {**_PLAIN, "Default": "YES"},
    "spot": {**_PLAIN, "GraceTime": "4", "PreemptMode": "REQUEUE"},
    "prod": {**_PLAIN, "PriorityTier": "10"},
}
JOB = """JobId={id} JobName={name}
   UserId=me(1000) GroupId=me(1000) MCS_label=N/A
   Priority=4294901759 Nice=0 Account=(null) QOS=(null)
   JobState={state} Reason={reason} Dependency={dependency}
   Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode=0:0
   PreemptEligibleTime=2026-11-28T05:54:49 PreemptTime={preempted}
   Partition={partition} AllocNode:Sid=localhost:12960
   NodeList={nodes}
"""


class Site:
    """The JSON file. Whoever changes it holds its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "state.json"

    def read(self) -> dict[str, Any]:
        return dict(json.loads(self._file.read_text()))

    @contextlib.contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self.read()
            yield state
            fresh = self.folder / "state.new"
            fresh.write_text(json.dumps(state, indent=1))
            fresh.rename(self._file)

    def make(self, **settings: Any) -> None:
        state = {"jobs": {}, "config": CONFIG, "partitions": PARTITIONS, "failures": {}, "hold": None, "asked": []}
        self._file.write_text(json.dumps({**state, **settings}))


class FakeSlurm:
    """The test's side. `env` leads programs to the commands; `hold`: why jobs wait until the test starts them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.site, self.programs = Site(folder), folder / "bin"
        self.site.make(agent=["standin_agent"])
        self.programs.mkdir()
        for name in (*PROGRAMS, "slurmctld"):
            program = self.programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" "{folder}" {name} "$@"\n')
            program.chmod(0o700)

    @property
    def env(self) -> dict[str, str]:
        return {"PATH": f"{self.programs}:{os.environ['PATH']}", "SLURM_CONF": str(self.site.folder / "slurm.conf")}

    # -- what the site does --------------------------------------------------------------------------------------------
    def hold(self, reason: str | None) -> None:
        """Jobs that are submitted or requeued from now on wait with this reason; None: they start at once."""
        self._set("hold", reason)

    def start(self, job_id: str) -> None:
        """A job that waits gets its nodes."""
        self._set("hold", None)
        subprocess.run([self.programs / "slurmctld", job_id], check=True)

    def real_agents(self, *, real_workers: bool = False) -> None:
        """From now on: the real agent and torchrun, with the stand-in worker or the real one."""
        self._set("agent", [AGENT, *([] if real_workers else ["--worker-module=standin_worker"])])

    def fail(self, command: str, *, stderr: str = "", code: int = 1, seconds: float = 0.0, does: bool = False) -> None:
        """From now on a command (`squeue`, `scontrol requeue`, …) says this after so long.

        does: it does all the same, and only its answer is another.
        """
        with self.site.change() as state:
            state["failures"][command] = {"stderr": stderr, "code": code, "seconds": seconds, "does": does}

    def controller_away(self) -> None:
        self.fail("squeue", stderr=f"slurm_load_jobs error: {AWAY}")
        self.fail("scontrol", stderr=f"slurm_load_ctl_conf error: {AWAY}")
        self.fail("scancel", stderr=f"scancel: error: Kill job error on job id 1: {AWAY}", code=8)
        self.fail("sbatch", stderr=f"sbatch: error: Batch job submission failed: {AWAY}")

    def work_again(self) -> None:
        self._set("failures", {})

    def configure(self, **facts: str) -> None:
        """Of `scontrol show config`."""
        with self.site.change() as state:
            state["config"] |= facts

    def partition(self, name: str, **facts: str) -> None:
        with self.site.change() as state:
            state["partitions"][name] |= facts

    def take_nodes(self, job_id: str, *, mode: str = "REQUEUE") -> None:
        """A preemption without a grace time: the job ends, and is put back into the queue unless the mode is CANCEL."""
        if mode == "REQUEUE":
            requeue(self.site, job_id)
            return
        with self.site.change() as state:
            job = state["jobs"][job_id]
            job |= {"state": "COMPLETING", "ending": "preempt", "preempted": moment(time.time())}
            tell(job, signal.SIGTERM, with_batch=True)

    def time_is_over(self, job_id: str) -> None:
        """At the time limit: everybody is told to end, and killed a little later."""
        with self.site.change() as state:
            job = state["jobs"][job_id]
            job |= {"state": "COMPLETING", "ending": "timeout"}
            tell(job, signal.SIGTERM, with_batch=True)

    def limit(self, seconds: float) -> None:
        """Of jobs that start from now on."""
        self._set("limit_seconds", seconds)

    def forget(self, job_id: str) -> None:
        """As SLURM does MinJobAge after a job's end."""
        with self.site.change() as state:
            del state["jobs"][job_id]

    # -- what a test looks at ------------------------------------------------------------------------------------------
    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.site.read()["jobs"][job_id])

    def jobs(self) -> list[str]:
        return list(self.site.read()["jobs"])

    def asked(self, program: str) -> list[list[str]]:
        """The words of each call of a program."""
        return [words[1:] for words in self.site.read()["asked"] if words[0] == program]

    def close(self) -> None:
        """Nothing of a job goes on."""
        for job in self.site.read()["jobs"].values():
            end_processes(job, with_batch=True)

    def _set(self, key: str, value: Any) -> None:
        with self.site.change() as state:
            state[key] = value


# -- jobs ------------------------------------------------------------------------------------------------------------
def start_batch(site: Site, job_id: str) -> None:
    """What slurmd is for a batch job: a process of its own that runs the script and tells how it ended."""
    argv = [sys.executable, "-IS", __file__, str(site.folder), "batch", job_id]
    with open(site.folder / "slurmd.log", "ab") as log:
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def run_batch(site: Site, job_id: str) -> int:
    """Run a job's script until it ends and is not put back into the queue."""
    while True:
        job = _begin(site, job_id)
        log = job["options"].get("output", os.devnull).replace("%j", job_id).replace("%%", "%")
        env = {**job["env"], "SLURM_JOB_ID": job_id, "SLURM_JOB_NODELIST": job["nodes"]}
        if job["restarts"]:
            env["SLURM_RESTART_COUNT"] = str(job["restarts"])
        with open(log, "ab") as output:
            child = subprocess.Popen(
                ["/bin/bash", "-c", job["script"]],
                env=env, cwd=job["folder"], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        with site.change() as state:
            state["jobs"][job_id]["batch"] = child.pid
        _await(site, job_id, child)
        if not _finish(site, job_id, child.returncode):
            return 0


def start_singletons(state: dict[str, Any]) -> list[str]:
    """Jobs that waited for all others of their name to end."""
    waiting = [one for one in state["jobs"] if state["jobs"][one]["reason"] == "Dependency"]
    names = {job["name"] for job in state["jobs"].values() if job["state"] in ("RUNNING", "COMPLETING")}
    return [one for one in waiting if state["jobs"][one]["name"] not in names]


def _begin(site: Site, job_id: str) -> dict[str, Any]:
    with site.change() as state:
        job = state["jobs"][job_id]
        count = int(job["options"].get("nodes", "1"))
        job["nodes"] = "node1" if count == 1 else f"node[1-{count}]"
        job |= {"state": "RUNNING", "reason": "None", "ending": None, "tasks": [], "start": time.time()}
        job["end"] = job["start"] + float(state.get("limit_seconds", LIMIT_SECONDS))
        return dict(job)


def _await(site: Site, job_id: str, child: subprocess.Popen[bytes]) -> None:
    """Until the script has ended; killed with all its steps when it takes too long about it."""
    deadline = None
    while child.poll() is None:
        job = site.read()["jobs"][job_id]
        if job["ending"] and deadline is None:
            deadline = time.monotonic() + KILL_WAIT_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            end_processes(job, with_batch=True)
        time.sleep(POLL_SECONDS)


def _finish(site: Site, job_id: str, code: int) -> bool:
    """What the job is now; True if it starts again at once."""
    with site.change() as state:
        job = state["jobs"][job_id]
        end_processes(job)
        job |= {"tasks": [], "batch": None, "nodes": "", "end": time.time()}
        if job["ending"] == "requeue":
            job |= {"state": "PENDING", "reason": state["hold"] or "BeginTime"}
            return state["hold"] is None
        ended = {"cancel": "CANCELLED", "timeout": "TIMEOUT", "preempt": "PREEMPTED"}
        job["state"] = ended.get(job["ending"]) or ("COMPLETED" if code == 0 else "FAILED")
        job["reason"] = "None" if code == 0 else "NonZeroExitCode"
        freed = start_singletons(state)
    for other in freed:
        start_batch(site, other)
    return False


def end_processes(job: dict[str, Any], *, with_batch: bool = False) -> None:
    for pid in [*job["tasks"], *([job["batch"]] if with_batch and job["batch"] else [])]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def tell(job: dict[str, Any], number: int, *, with_batch: bool) -> None:
    for pid in [*job["tasks"], *([job["batch"]] if with_batch and job["batch"] else [])]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def requeue(site: Site, job_id: str) -> None:
    with site.change() as state:
        job = state["jobs"][job_id]
        job |= {"ending": "requeue", "restarts": job["restarts"] + 1, "state": "COMPLETING", "preempted": "None"}
        tell(job, signal.SIGTERM, with_batch=True)


# -- the programs ----------------------------------------------------------------------------------------------------
def split(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Long options, and all from the first other word on."""
    options = {}
    while words and words[0].startswith("--"):
        name, _, value = words[0].removeprefix("--").partition("=")
        options[name] = value
        words = words[1:]
    return options, words


def complain(text: str, code: int = 1) -> int:
    print(text, file=sys.stderr)
    return code


def sbatch(site: Site, words: list[str]) -> int:
    options, files = split(words)
    script = Path(files[0]).read_text() if files else sys.stdin.read()
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE)) | options
    state = site.read()
    partition = asked.get("partition") or next(n for n, one in state["partitions"].items() if one["Default"] == "YES")
    if partition not in state["partitions"]:
        print(f"sbatch: error: invalid partition specified: {partition}", file=sys.stderr)
        return complain("sbatch: error: Batch job submission failed: Invalid partition name specified")
    if int(asked.get("nodes", "1")) > len(NODES):
        return complain("allocation failure: Requested node configuration is not available")
    if "test-only" in options:
        where = f"using 1 processors on nodes node1 in partition {partition}"
        return complain(f"sbatch: Job 999 to start at {moment(time.time())} {where}", 0)
    reason = state["hold"] or ("Dependency" if "dependency" in asked else None)
    with site.change() as state:
        job_id = str(FIRST_JOB + len(state["jobs"]))
        state["jobs"][job_id] = {
            "options": asked, "script": script, "folder": os.getcwd(), "env": dict(os.environ),
            "name": asked.get("job-name", "sbatch"), "partition": partition, "state": "PENDING",
            "reason": reason or "None", "dependency": asked.get("dependency", "(null)"), "restarts": 0, "nodes": "",
            "start": None, "end": None, "ending": None, "batch": None, "tasks": [], "preempted": "None",
        }  # fmt: skip
        preempt(state, partition)
    if reason is None:
        start_batch(site, job_id)
    print(job_id if "parsable" in options else f"Submitted batch job {job_id}")
    return 0


def preempt(state: dict[str, Any], partition: str) -> None:
    """Steps of jobs that have to make room are told; leaving in their grace time they end like any other."""
    tier = int(state["partitions"][partition]["PriorityTier"])
    for job in state["jobs"].values():
        own = state["partitions"][job["partition"]]
        if job["state"] == "RUNNING" and own["PreemptMode"] != "OFF" and int(own["PriorityTier"]) < tier:
            job["preempted"] = moment(time.time())
            tell(job, signal.SIGTERM, with_batch=False)


def moment(seconds: float | None) -> str:
    return "N/A" if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))


def squeue(site: Site, words: list[str]) -> int:
    options, _ = split(words)
    if "name" in options:
        named = {one: job for one, job in site.read()["jobs"].items() if job["name"] == options["name"]}
        print("\n".join(one for one, job in named.items() if job["state"] not in OVER))
        return 0
    job = site.read()["jobs"].get(options["jobs"])
    if job is None:
        return complain(NO_JOB)
    if job["state"] in OVER and options.get("states") != "all":
        return 0
    shown = {"%T": "state", "%r": "reason", "%N": "nodes", "%P": "partition"}
    values = {mark: str(job[key]) for mark, key in shown.items()}
    values |= {"%S": moment(job["start"]), "%e": moment(job["end"])}
    print(re.sub(r"%[A-Za-z]", lambda found: values[found[0]], options["format"]))
    return 0


def scontrol(site: Site, words: list[str]) -> int:
    what, state = " ".join(words[:2]), site.read()
    name = words[2] if len(words) > 2 else ""
    if words[0] in ("suspend", "resume"):
        with site.change() as state:
            stopping = words[0] == "suspend"
            state["jobs"][words[1]]["state"] = "SUSPENDED" if stopping else "RUNNING"
            tell(state["jobs"][words[1]], signal.SIGSTOP if stopping else signal.SIGCONT, with_batch=True)
    elif words[0] == "requeue":
        if words[1] not in state["jobs"]:
            return complain(f"Invalid job id specified for job {words[1]}")
        requeue(site, words[1])
    elif what == "show config":
        print(f"Configuration data as of {moment(time.time())}")
        print("\n".join(f"{key:<23} = {value}" for key, value in state["config"].items()))
        print("\nSlurmctld(primary) at head is UP")
    elif what == "show partition":
        if name and name not in state["partitions"]:
            print(f"Partition {name} not found")
            return 1
        for one in [name] if name else state["partitions"]:
            print(PARTITION.format(name=one, **state["partitions"][one]))
    elif what == "show hostnames":
        print("\n".join(hostnames(name)))
    elif what == "show node":
        print(f"NodeName={name} Arch=x86_64 CoresPerSocket=1\n   CPUAlloc=0 CPUEfctv=6 CPUTot=8 CPULoad=1.73\n")
    elif what == "show job":
        if name not in state["jobs"]:
            return complain(NO_JOB)
        print(JOB.format(id=name, **state["jobs"][name]))
    return 0


def hostnames(text: str) -> list[str]:
    found = re.fullmatch(r"node\[(\d+)-(\d+)\]", text)
    return [f"node{number}" for number in range(int(found[1]), int(found[2]) + 1)] if found else [text]


def scancel(site: Site, words: list[str]) -> int:
    options, (job_id,) = split(words)
    with site.change() as state:
        job = state["jobs"].get(job_id)
        gone = job is None or job["state"] in OVER
        if "signal" in options:
            if gone:
                return complain(f"scancel: error: Kill job error on job id {job_id}: Invalid job id specified")
            tell(job, signal.Signals[f"SIG{options['signal']}"], with_batch=False)
        elif not gone and job["batch"] is None:
            job |= {"state": "CANCELLED", "start": time.time(), "end": time.time()}
        elif not gone:
            job |= {"state": "COMPLETING", "ending": "cancel"}
            tell(job, signal.SIGTERM, with_batch=True)
    return 0


def srun(site: Site, words: list[str]) -> int:
    """The same words once for each task, all of them here."""
    options, argv = split(words)
    job_id, state = os.environ.get("SLURM_JOB_ID", ""), site.read()
    if AGENT in argv:
        at = argv.index(AGENT)
        module, *more = state["agent"]
        argv = [*argv[:at], module, *argv[at + 1 :], *more]
    tasks = []
    for rank in range(int(options.get("ntasks", "1"))):
        node = options.get("nodelist") or NODES[rank]
        ranks = {"SLURM_NODEID": str(rank), "SLURM_PROCID": str(rank), "SLURMD_NODENAME": node}
        env = {**os.environ, **ranks}
        tasks.append(subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, start_new_session=True))
    if job_id:
        with site.change() as state:
            state["jobs"][job_id]["tasks"] += [task.pid for task in tasks]
    codes = [task.wait() for task in tasks]
    return max(code if code >= 0 else 128 - code for code in codes)


def sinfo(site: Site, words: list[str]) -> int:
    options, _ = split(words)
    for name, facts in site.read()["partitions"].items():
        star = "*" if facts["Default"] == "YES" else ""
        values = {"%R": name, "%P": f"{name}{star}", "%c": "8", "%G": "gpu:2(S:0)", "%N": "node[1-4]"}
        values |= {"%m": "16000", "%D": "4", "%l": "1-00:00:00", "%a": facts["State"].lower()}
        if options.get("partition", name) == name:
            print(re.sub(r"%[A-Za-z]", lambda found: values[found[0]], options["format"]))  # noqa: B023
    return 0


def main(argv: list[str]) -> int:
    site, name, words = Site(Path(argv[1])), argv[2], argv[3:]
    if name == "batch":
        return run_batch(site, words[0])
    if name == "slurmctld":
        start_batch(site, words[0])
        return 0
    with site.change() as state:
        state["asked"].append([name, *words])
    failures = state["failures"]
    failure = failures.get(f"{name} {words[0]}" if words else name) or failures.get(name)
    if failure is not None:
        if failure["does"]:
            with contextlib.redirect_stdout(None):
                globals()[name](site, words)
        time.sleep(failure["seconds"])
        return complain(failure["stderr"], failure["code"])
    return int(globals()[name](site, words))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
