"""The requirements of a Ray of several nodes on one machine, and the commands that start its processes.

Ray listens on all addresses of a machine. So all of it lives in a network of its own (a namespace of the kernel) that
has loopback addresses only, and each node besides has a host name of its own. Starts nothing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from launchyard.errors import UserError
from launchyard.host.environment import RAY_SITE, own_environment
from launchyard.host.packages import install_packages
from launchyard.host.processes import python_argv
from launchyard.launcher.sandbox.slurm import host as slurm_host

HEAD = "node1"
DASHBOARD = "127.0.0.1", 8265
GCS_PORT = 6379
SEEN = "r"  # the folder of each node, as it sees it
_OBJECTS = 80 << 20  # bytes of shared memory a node; Ray wants 75 MiB at least, and a run uses none
# A small Ray, on a machine that may be small: no telemetry, no workers before they are asked for, and no killing of
# processes because other programs fill the memory. Nodes leave soon when their head does not come back.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AUTH_MODE": "disabled",  # a token of the user's is for another Ray; this one is in a network of its own
}


class Settings(BaseModel):
    """The settings of a Ray sandbox."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = Field(default=4, ge=1, le=32)
    gpus_per_node: int = Field(default=0, ge=0, le=16)
    cpus_per_node: int = Field(default=2, ge=1, le=256)

    @property
    def names(self) -> list[str]:
        return [f"node{number + 1}" for number in range(self.nodes)]


def require() -> None:
    """Checks this machine; UserError names a missing requirement."""
    if not sys.platform.startswith("linux"):
        raise UserError(f"the Ray sandbox needs Linux: its nodes are namespaces of the kernel; this is {sys.platform}")
    if importlib.util.find_spec("ray") is None:
        raise UserError("Ray is not installed here", hint=install_packages("ray[default]>=2.50"))
    missing = [name for name in ("ip", "nsenter", "unshare") if slurm_host.find_program(name) is None]
    if missing:
        raise UserError(f"not installed: {', '.join(missing)}", hint="apt-get install iproute2 util-linux")
    slurm_host.require_namespaces()


def version() -> str:
    return metadata.version("ray")


def environment(folder: Path) -> dict[str, str]:
    """For all processes of a site: no variables of another Ray, and the mark of this one."""
    inherited = own_environment()
    here = os.path.dirname(sys.executable)
    return {**inherited, **QUIET, "PATH": f"{here}:{inherited.get('PATH', os.defpath)}", RAY_SITE: str(folder)}


def address_of(node: str) -> str:
    """node3 -> 10.77.0.3, which exists in the site's own network only."""
    return f"10.77.0.{node.removeprefix('node')}"


def hosts_text(settings: Settings) -> str:
    lines = ["127.0.0.1 localhost", *(f"{address_of(name)} {name}" for name in settings.names)]
    return "\n".join(lines) + "\n"


def network_argv(settings: Settings, socket: Path) -> list[str]:
    """Makes the network, and becomes the relay into it."""
    commands = ["ip link set lo up", *(f"ip addr add {address_of(name)}/32 dev lo" for name in settings.names)]
    script = " && ".join([*commands, 'exec "$@"'])
    as_user = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    relay = [*python_argv(sys.executable), "-m", "launchyard.launcher.sandbox.ray.relay", str(socket)]
    relay += [DASHBOARD[0], str(DASHBOARD[1])]
    return [shutil.which("unshare") or "unshare", *as_user, "--net", "sh", "-c", script, "sh", *relay]


def node_argv(node: str, settings: Settings, *, network: int, hosts: Path, temporary: Path) -> list[str]:
    """Becomes a node of Ray's. network: process that keeps the network. temporary: folder with a short name.

    Nodes see the same path in it, and each has a folder of its own there: Ray unpacks code at such paths.
    """
    own = (temporary / node, temporary / SEEN)
    arguments = ["start", f"--node-ip-address={address_of(node)}", "--block", "--disable-usage-stats"]
    arguments += [f"--num-cpus={settings.cpus_per_node}", f"--num-gpus={settings.gpus_per_node}"]
    arguments += [f"--object-store-memory={_OBJECTS}"]
    if node == HEAD:
        host, port = DASHBOARD
        arguments += ["--head", f"--port={GCS_PORT}", f"--temp-dir={own[1]}", "--include-dashboard=true"]
        arguments += [f"--dashboard-host={host}", f"--dashboard-port={port}"]
    else:
        arguments.append(f"--address={address_of(HEAD)}:{GCS_PORT}")
    ray = [*python_argv(sys.executable), "-m", "ray.scripts.scripts", *arguments]
    return [*into(network), *slurm_host.in_node(ray, name=node, hosts=hosts, folder=own)]


def into(network: int) -> list[str]:
    """The prefix of a command line that runs inside a site's network."""
    as_user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    return [shutil.which("nsenter") or "nsenter", f"--target={network}", *as_user, "--net", "--"]
