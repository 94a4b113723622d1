"""A command of ours as a batch job of SLURM: one task on one node, which is ended by scancel and never requeued."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launchyard.launcher.backends.base import JobStatus
from launchyard.launcher.backends.cluster import store_environment
from launchyard.launcher.backends.command import Command
from launchyard.launcher.backends.slurm.client import Controller
from launchyard.launcher.backends.slurm.request import agent_python, job_text, srun_argv
from launchyard.run import own_code
from launchyard.run.layout import job_output

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster

SHARES_FILES = True


@dataclass(frozen=True)
class SlurmCommand:
    job_id: str
    controller: Controller
    log: Path

    @property
    def end_with(self) -> str:
        return f"scancel {self.job_id}"

    def poll(self) -> JobStatus:
        return self.controller.ask(self.job_id)

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def command_text(cluster: Cluster, command: Command) -> str:
    code = own_code.movable()
    path = None if code is None else str(code)
    # Without labels, so that its output is what it prints.
    srun = [word for word in srun_argv(cluster, nnodes=1) if word != "--label"]
    log = f"{str(command.folder).replace('%', '%%')}/{job_output('%j')}"
    return job_text(
        cluster,
        name=command.name,
        command=[*srun, *agent_python(cluster, sys.executable, code=path), "-u", "-m", "launchyard", *command.argv],
        shape=(1, command.gpus),
        files=(log, path),
        more={"no-requeue": True, **({"time": command.time_limit} if command.time_limit else {})},
    )


def send_command(cluster: Cluster, command: Command) -> SlurmCommand:
    script = command.folder / "job.sbatch"
    script.write_text(command_text(cluster, command))
    controller = Controller({**store_environment(cluster.storage.options), **cluster.environment})
    job_id = controller.submit(str(script))
    return SlurmCommand(job_id, controller, command.folder / job_output(job_id))
