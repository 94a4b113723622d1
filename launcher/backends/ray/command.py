"""A command of ours as a job of Ray: its entrypoint, on a node that has what it asks for; `ray job stop` ends it."""

from __future__ import annotations

import json
import secrets
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launchyard.errors import UserError
from launchyard.host.processes import SAFE_PATH, python_argv
from launchyard.launcher.backends.base import JobStatus
from launchyard.launcher.backends.cluster import store_environment
from launchyard.launcher.backends.command import Command
from launchyard.launcher.backends.ray.backend import dashboard, refusals, send_code
from launchyard.launcher.backends.ray.client import Dashboard
from launchyard.launcher.backends.ray.request import QUIET, options_of, worker_python

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster

SHARES_FILES = False
_Request = dict[str, Any]
_STOP_SECONDS = 60  # that `ray job stop` leaves a command to end by itself


@dataclass(frozen=True)
class RayCommand:
    job_id: str
    ray: Dashboard

    @property
    def end_with(self) -> str:
        return f"ray job stop --address {self.ray.address} {self.job_id}"

    def poll(self) -> JobStatus:
        return self.ray.ask(self.job_id)

    def output(self) -> str:
        return self.ray.logs(self.job_id)


def command_text(cluster: Cluster, command: Command) -> str:
    return json.dumps(_request(cluster, command), indent=1)


def send_command(cluster: Cluster, command: Command) -> RayCommand:
    place = options_of(cluster).model_dump(mode="json", exclude_defaults=True)
    if "address" not in place:
        raise UserError("the cluster names no Ray: give ray.address, or serve on this machine without --cluster")
    ray = dashboard(place)
    request = _request(cluster, command)
    with refusals():
        ray.version()
        code = send_code(ray)
        if code is not None:
            request["runtime_env"]["working_dir"] = code
        return RayCommand(ray.submit({**request, "submission_id": f"{command.name}-{secrets.token_hex(3)}"}), ray)


def _request(cluster: Cluster, command: Command) -> _Request:
    argv = [*python_argv(worker_python(cluster, sys.executable)), "-u", "-m", "launchyard", *command.argv]
    variables = {**store_environment(cluster.storage.options), **cluster.environment, **SAFE_PATH, **QUIET}
    variables["RAY_JOB_STOP_WAIT_TIME_S"] = str(_STOP_SECONDS)
    return {
        "entrypoint": f"exec {shlex.join(argv)}",
        "runtime_env": {**options_of(cluster).runtime_env, "env_vars": variables},
        "entrypoint_num_cpus": cluster.node.cpus or 1,
        **({"entrypoint_num_gpus": command.gpus} if command.gpus else {}),
    }
