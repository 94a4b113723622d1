"""Processes of this machine: distinguish live from dead ones, start one that cannot outlive us, end the rest.

Knows no policy. A process of a run carries the run's URL in its environment: that is its mark.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from launchyard.host.environment import AGENT_PID, MARK_ATTEMPT, MARK_NODE, MARK_RUN, variable

if TYPE_CHECKING:
    import psutil

# The same as `-P` on a command line, for Python processes that others start for us, as torchrun starts its workers.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
SHIELDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_NAME = "worker "
GENERATIONS = 2  # from the server that forks workers up to the agent


def python_argv(python: str) -> list[str]:
    """The interpreter, as each of our command lines begins: a `model.py` of the working directory is not ours."""
    return [python, "-P"]


def python_environment(env: Mapping[str, str], *, code: Path | str | None) -> dict[str, str]:
    """`env` for Python processes of ours, which find the folder `code` before all else; None: the installed package."""
    folders = [
        folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder
    ]  # "" is the working directory
    path = folders if code is None else [str(code), *(folder for folder in folders if folder != str(code))]
    return {**env, **SAFE_PATH, **({"PYTHONPATH": os.pathsep.join(path)} if path else {})}


def started_at(pid: int) -> float | None:
    """Returns the start time of a process, a number that only distinguishes processes; None if it is gone or a zombie.

    On Linux seconds since boot: a wall clock that is set while a run goes on must not make its owner look dead.
    """
    if not sys.platform.startswith("linux"):
        return _created(pid)
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19]) / os.sysconf("SC_CLK_TCK")


def born_at(pid: int) -> float | None:
    """Returns when a process began, as Unix time (to 10 ms: psutil's counts from the whole second of the boot), or None
    as `started_at`."""
    started = started_at(pid)
    if started is None or not sys.platform.startswith("linux"):
        return started
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - started)


def _created(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def is_alive(pid: int, started: float) -> bool:
    """Returns True while the process that started then lives, and not another one with its number."""
    now = started_at(pid)
    return now is not None and abs(now - started) < 0.02


def variable_of(pid: int, name: str) -> str | None:
    """Returns a variable that a process was started with; None without it, or if the process is gone."""
    import psutil

    try:
        return psutil.Process(pid).environ().get(name)
    except psutil.Error:
        return None


def start_shielded(
    argv: list[str], *, env: dict[str, str], output: IO[bytes], orders: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a child in a session of its own that ignores the signals meant for us and dies when we die (Linux).

    It dies with the thread that calls this, so call it from the main thread. `orders`: its standard input.
    """
    return subprocess.Popen(
        argv,
        env=env,
        stdin=subprocess.DEVNULL if orders is None else orders,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_shield(os.getpid(), _prctl()),  # system calls only
    )


def _shield(parent: int, prctl: Callable[..., int] | None) -> Callable[[], None]:
    def in_child() -> None:
        for number in SHIELDED:
            signal.signal(number, signal.SIG_IGN)
        if prctl is not None and not _bind_to(parent, prctl):
            os._exit(1)

    return in_child


def _prctl() -> Callable[..., int] | None:
    try:
        return ctypes.CDLL(None).prctl
    except (OSError, AttributeError):  # not Linux: a process that outlives us is found by its mark
        return None


def _bind_to(parent: int, prctl: Callable[..., int]) -> bool:
    """Lets the kernel kill this process when its parent dies; returns False if that was before. Only system calls."""
    prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    return os.getppid() == parent


def die_with_parent() -> None:
    """Lets the kernel end this worker when the server that forked it does, which torchrun's end ends, as the agent's
    does torchrun: so nothing trains on unobserved (Linux)."""
    parent = os.getppid()
    prctl = _prctl()
    if prctl is not None and (not _bind_to(parent, prctl) or _is_orphan(parent)):
        os.kill(os.getpid(), signal.SIGKILL)


def _is_orphan(parent: int) -> bool:
    """Returns True if our parent does not stem from the agent: then a process in between died before this check."""
    agent = variable(AGENT_PID)
    if agent is None:  # started by hand
        return False
    above = parent
    for _ in range(GENERATIONS):
        above = parent_of(above)
        if str(above) == agent:
            return False
    return True


def parent_of(pid: int) -> int:
    """0 if the process is gone (Linux)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def name_worker(rank: int) -> None:
    """Shows the rank in `top` and `ps`, where all workers have the words of the server that forked them (Linux)."""
    prctl = _prctl()
    if prctl is not None:
        prctl(_PR_SET_NAME, f"{_NAME}{rank}".encode(), 0, 0, 0)


def worker_rank(process: psutil.Process) -> int | None:
    """The rank of a worker; None of any other process."""
    import psutil

    try:
        name = process.name()
    except psutil.Error:
        return None
    rank = name.removeprefix(_NAME)
    return int(rank) if name.startswith(_NAME) and rank.isdigit() else None


def marked(run_url: str, *, attempt: int | None = None, node_rank: int | None = None) -> list[psutil.Process]:
    """Returns this user's processes of a run (of one attempt, of one node of it), without this process itself."""
    import psutil

    wanted = {MARK_RUN: run_url}
    if attempt is not None:
        wanted[MARK_ATTEMPT] = str(attempt)
    if node_rank is not None:
        wanted[MARK_NODE] = str(node_rank)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.uids().real != os.getuid():
                continue
            environ = process.environ()
            if all(environ.get(key) == value for key, value in wanted.items()):
                found.append(process)
    return found


def descendants(pid: int) -> list[psutil.Process]:
    """Returns a process and all below it; nothing if it is gone."""
    import psutil

    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def children(pid: int) -> set[int]:
    """Returns the direct children that are not dead yet, cheaply enough to ask every second."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            found = {int(field) for field in file.read().split()}
    except OSError:  # not Linux, a kernel without this file, or gone
        found = {process.pid for process in descendants(pid)[1:] if process.ppid() == pid}
    return {child for child in found if started_at(child) is not None}


def end_all(processes: Iterable[psutil.Process], *, wait_seconds: float = 5.0) -> None:
    """Sends SIGKILL and waits until they have ended. psutil makes sure that a reused number is not hit.

    One whose parent has not asked for its end yet has ended all the same: process 1 may take its time.
    """
    import psutil

    listed = list(processes)
    for process in listed:
        with contextlib.suppress(psutil.Error):
            process.kill()
    wait_until(lambda: all(started_at(process.pid) is None for process in listed), seconds=wait_seconds, every=0.01)


def end_child(child: subprocess.Popen[bytes], *, wait_seconds: float = 5.0) -> None:
    """Sends SIGKILL to a child and the process group that it leads."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(wait_seconds)


def end_marked(run_url: str, *, attempt: int | None = None, node_rank: int | None = None) -> int:
    """Ends every process of a run that is left, also those started meanwhile; returns their number."""
    count = 0
    for _ in range(5):
        found = marked(run_url, attempt=attempt, node_rank=node_rank)
        if not found:
            break
        count += len(found)
        end_all(found)
    return count


def wait_until(done: Callable[[], bool], *, seconds: float, every: float = 0.05) -> bool:
    """Polls until `done` holds; returns False if it did not in time."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True
