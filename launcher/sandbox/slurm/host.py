"""The requirements of a SLURM on one machine: programs, namespaces, control groups. Starts no daemon.

A node is a UTS namespace (a host name of its own) and a mount namespace (its own /etc/hosts): nothing of the machine's
is changed. Root makes them at once, others inside a user namespace.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from launchyard.errors import LaunchError, UserError
from launchyard.host.environment import own_environment

# Debian's packages, and the program of each that must be there.
PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "slurm-client": "sbatch", "munge": "munged"}
ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadb-server": "mariadbd"}
FREEZER = Path("/sys/fs/cgroup/freezer")
UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers")
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"  # daemons are there, and users' PATH often is not
_INSTALL_SECONDS = 900


def environment(slurm_conf: Path) -> dict[str, str]:
    """For daemons and for SLURM's commands: no variables of another SLURM."""
    inherited = {key: value for key, value in own_environment().items() if not key.startswith(("SLURM", "MUNGE"))}
    return {**inherited, "PATH": f"{inherited.get('PATH', os.defpath)}:{_SYSTEM_PATH}", "SLURM_CONF": str(slurm_conf)}


def find_program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_PATH)


def require(*, accounting: bool, cgroup: bool, report: Callable[[str], None]) -> None:
    """Checks this machine; as root, installs missing programs first. UserError names a missing requirement."""
    if not sys.platform.startswith("linux"):
        raise UserError(
            f"the SLURM sandbox needs Linux: its nodes are namespaces of the kernel; this is {sys.platform}",
            hint="run it in a Linux virtual machine, or in a container with --privileged",
        )
    require_programs({**PACKAGES, **(ACCOUNTING if accounting else {})}, report=report)
    require_namespaces()
    if cgroup:
        require_cgroup()


# -- programs --------------------------------------------------------------------------------------------------------
def require_programs(packages: dict[str, str], *, report: Callable[[str], None]) -> None:
    missing = [package for package, program in packages.items() if find_program(program) is None]
    if not missing:
        return
    command = f"apt-get install {' '.join(missing)}"
    lacks = f"not installed: {', '.join(packages[package] for package in missing)}"
    if shutil.which("apt-get") is None:
        raise UserError(lacks, hint=f"install SLURM (22.05 or later) and munge; on Debian or Ubuntu: {command}")
    if os.geteuid() != 0:
        raise UserError(lacks, hint=f"sudo {command}    (their system services are not needed and may stay off)")
    report(f"installing by apt-get: {' '.join(missing)}")
    _apt_install(missing)
    if still := [packages[package] for package in missing if find_program(packages[package]) is None]:
        raise LaunchError(f"{command} worked, but these programs are still not found: {', '.join(still)}")


def _apt_install(packages: list[str]) -> None:
    """With the lists of packages that are there, else with fresh ones."""
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    for argv in (install, ["apt-get", "update"], install):
        done = _ask(argv, seconds=_INSTALL_SECONDS)
        if done.returncode == 0 and argv is install:
            return
    last = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
    raise LaunchError(f"apt-get install {' '.join(packages)} did not work\n  {last}")


def version() -> str:
    """Such as 22.05.8."""
    return _ask([find_program("slurmctld") or "slurmctld", "-V"]).stdout.split()[-1]


# -- namespaces ------------------------------------------------------------------------------------------------------
def in_node(argv: list[str], *, name: str, hosts: Path, folder: tuple[Path, Path] | None = None) -> list[str]:
    """A command line that becomes `argv` (the same process) with a host name and an /etc/hosts of its own.

    folder: (real, seen): the node sees the first path at the second.
    """
    script = 'hostname "$1" && mount --bind "$2" /etc/hosts && mount --bind "$3" "$4" && shift 4 && exec "$@"'
    mounts = [str(path) for path in (hosts, *(folder or (hosts, hosts)))]
    as_user = []
    drop = []
    if os.geteuid() != 0:
        # The rights that make the names are not for SLURM and its jobs.
        as_user = ["--user", "--map-current-user", "--keep-caps"]
        drop = ["setpriv", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]
    return ["unshare", *as_user, "--uts", "--mount", "sh", "-c", script, "sh", name, *mounts, *drop, *argv]


def require_namespaces() -> None:
    tried = _ask(in_node(["true"], name="node1", hosts=Path("/etc/hosts")))
    if tried.returncode == 0:
        return
    problem = (tried.stderr.strip().splitlines() or ["no message"])[-1]
    if os.geteuid() == 0:
        fix = "in a container: start that with --privileged"
    else:
        fix = (
            "run it as root, or let users make namespaces: sysctl kernel.unprivileged_userns_clone=1, "
            "on Ubuntu sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        )
    raise UserError(f"this machine does not let us give a process a host name of its own ({problem})", hint=fix)


# -- control groups --------------------------------------------------------------------------------------------------
def require_cgroup() -> None:
    """UserError unless SLURM can follow processes by control groups here."""
    if os.geteuid() != 0:
        raise UserError("proctrack cgroup needs root", hint="use --proctrack linuxproc")
    if os.access(FREEZER, os.W_OK) and (FREEZER / "cgroup.procs").exists():
        return
    if UNIFIED.exists():
        what = "this machine has version 2 of control groups only, which this sandbox does not support"
    else:
        what = f"control groups cannot be used here: {FREEZER} is not there or cannot be written"
    raise UserError(f"proctrack cgroup: {what}", hint="use --proctrack linuxproc")


def cgroup_members(nodes: list[str]) -> set[int]:
    """Processes that these nodes' control groups hold."""
    found: set[int] = set()
    for path in _groups(nodes):
        with contextlib.suppress(OSError):
            found |= {int(number) for number in (path / "cgroup.procs").read_text().split()}
    return found


def remove_cgroups(nodes: list[str]) -> None:
    """Removes those that slurmd made for these nodes, innermost first; one that still holds a process stays."""
    for path in _groups(nodes):
        with contextlib.suppress(OSError):
            path.rmdir()


def _groups(nodes: list[str]) -> list[Path]:
    tops = [FREEZER / f"slurm_{node}" for node in nodes]
    found = [Path(folder) for top in tops for folder, _, _ in os.walk(top)]
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def _ask(argv: list[str], *, seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
    env = {**own_environment(), "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        return subprocess.run(
            argv, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(argv, 127, "", str(error))
