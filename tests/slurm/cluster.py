"""A real SLURM for tests: nodes that can be crashed, a controller that can go away, and nothing left when tests end."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psutil

from launchyard.host.processes import end_all, started_at
from launchyard.launcher.sandbox.slurm.conf import Settings
from launchyard.launcher.sandbox.slurm.site import CONTROLLER, Site

# Sockets need short paths, and pytest's are long. The name says whose it is, so that the next run can end it.
_PREFIX = "lyslurm-"
QUICK = Settings(grace_seconds=4, kill_wait_seconds=2)
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL"}


@contextmanager
def frozen(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """They do not run, and nobody is told: their connections stay open. Afterwards they go on."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.Error):
                process.resume()


class SlurmCluster:
    """A site that runs. `env` leads SLURM's commands, and anything that calls them, to it."""

    def __init__(self, site: Site) -> None:
        self.site, self.nodes = site, site.nodes

    @property
    def env(self) -> dict[str, str]:
        """Variables that a process needs besides its own."""
        return {"SLURM_CONF": str(self.site.conf)}

    # -- SLURM's commands ----------------------------------------------------------------------------------------------
    def run(self, *argv: str, seconds: float = 60.0) -> str:
        """Output of a command that must work."""
        done = self.site.run(*argv, seconds=seconds)
        assert done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"
        return done.stdout

    def sbatch(self, script: str | Path, *options: str) -> int:
        """Submit a script, a file or its text; the job's id."""
        if isinstance(script, str):
            file = Path(tempfile.mkstemp(dir=self.site.folder / "runs", suffix=".sh")[1])
            file.write_text(script if script.startswith("#!") else f"#!/bin/bash\n{script}\n")
            script = file
        return int(self.run("sbatch", "--parsable", "--output=/dev/null", *options, str(script)).split(";")[0])

    def squeue(self, job: int) -> str:
        """State of a job that SLURM still knows, such as PENDING; "" when it has forgotten it."""
        done = self.site.run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")
        return done.stdout.strip()

    def scontrol(self, *words: str) -> str:
        return self.run("scontrol", *words)

    def job(self, job: int) -> dict[str, str]:
        """`scontrol show job`, as fields."""
        words = self.scontrol("--oneliner", "show", "job", str(job)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def node_state(self, node: str) -> str:
        """Such as idle, mixed, down*."""
        return self.site.node_states().get(node, "")

    # -- waiting -------------------------------------------------------------------------------------------------------
    def wait_job(self, job: int, *states: str, seconds: float = 60.0) -> str:
        """Until a job is in one of these states; by default, in one of those that are the end."""
        wanted = set(states) or OVER
        return self.wait(lambda: (state := self.squeue(job)) in wanted and state, f"{job} in {wanted}", seconds)

    def wait_node(self, node: str, *states: str, seconds: float = 60.0) -> str:
        return self.wait(lambda: (state := self.node_state(node)) in states and state, f"{node} in {states}", seconds)

    @staticmethod
    def wait(done, what: str, seconds: float = 60.0):  # type: ignore[no-untyped-def]
        """Until done() is true; its value."""
        end = time.monotonic() + seconds
        while not (value := done()):
            assert time.monotonic() < end, f"not within {seconds} s: {what}"
            time.sleep(0.05)
        return value

    # -- faults --------------------------------------------------------------------------------------------------------
    def crash_node(self, node: str) -> int:
        """Everything on the node is killed at once; how many processes there were."""
        return self.site.crash(node)

    def frozen_node(self, node: str) -> AbstractContextManager[None]:
        return frozen(self.site.processes(node))

    def kill_slurmd(self, node: str) -> None:
        """Only SLURM's daemon dies; jobs on the node live on, which SLURM cannot know."""
        self.site.stop_daemon(node, 9)

    def restart_node(self, node: str, *, wait: bool = True) -> None:
        self.site.start_daemon(node)
        if wait:
            self.wait_node(node, "idle", "mixed", "allocated", "completing")

    def stop_controller(self) -> None:
        self.site.stop_daemon(CONTROLLER)

    def start_controller(self) -> None:
        self.site.start_daemon(CONTROLLER)

    def processes(self, node: str | None = None) -> list[psutil.Process]:
        """What lives on a node, or on all, besides SLURM's own daemons."""
        return [process for process in self.site.processes(node) if _name(process) not in _DAEMONS]

    def settle(self) -> None:
        """As at the start: every daemon lives, no job is left, every node is idle."""
        self.site.repair()
        self.run("scancel", "--quiet", "--full", f"--user={os.getuid()}")
        end_all(process for process in self.processes() if _name(process) != "slurmstepd")  # without KillWait
        for node, state in self.site.node_states().items():
            if state.startswith(("drain", "down")):
                self.scontrol("update", f"nodename={node}", "state=resume")
        self.wait(lambda: not self.run("squeue", "--noheader").strip(), "an empty queue", 60)
        self.wait(lambda: set(self.site.node_states().values()) == {"idle"}, "idle nodes", 60)


_DAEMONS = {"slurmd", "slurmctld", "slurmscriptd", "slurmdbd", "munged", "mariadbd"}


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "slurmd"


@contextmanager
def running_cluster(settings: Settings = QUICK) -> Iterator[SlurmCluster]:
    """A SLURM with these settings, gone afterwards with all that ran in it."""
    _end_stale()
    me = f"{os.getpid()}-{int((started_at(os.getpid()) or 0) * 100)}"
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{me}-", dir="/tmp"))
    site = Site(folder)
    try:
        site.start(settings)
        (folder / "runs").mkdir(exist_ok=True)
        yield SlurmCluster(site)
    finally:
        site.stop()
        shutil.rmtree(folder)


def _end_stale() -> None:
    """Sites of tests that were killed."""
    for folder in Path("/tmp").glob(f"{_PREFIX}*-*-*"):
        pid, started = folder.name.removeprefix(_PREFIX).split("-")[:2]
        now = started_at(int(pid))
        if folder.stat().st_uid == os.getuid() and (now is None or int(now * 100) != int(started)):
            Site(folder).stop()
            shutil.rmtree(folder, ignore_errors=True)


def has_slurm() -> bool:
    """Whether the programs are there and namespaces can be made; tests are skipped without, never silently passed."""
    from launchyard.launcher.sandbox.slurm import host

    if any(host.find_program(program) is None for program in host.PACKAGES.values()):
        return False
    argv = host.in_node(["true"], name="node1", hosts=Path("/etc/hosts"))
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0
