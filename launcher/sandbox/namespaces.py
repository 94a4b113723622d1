"""Processes by the kernel namespace they live in (Linux): those of a node of a sandbox, of any user.

A namespace has a number, which is used again once it is gone; so a number alone proves nothing, a mark inside does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from launchyard.host.processes import started_at

if TYPE_CHECKING:
    import psutil


def namespace_of(pid: int) -> str | None:
    """The UTS namespace (of the host name) of a process; None if it is gone or not ours to ask."""
    try:
        return os.readlink(f"/proc/{pid}/ns/uts")
    except OSError:
        return None


def marked_namespaces(is_marked: Callable[[list[bytes]], bool]) -> set[str]:
    """Namespaces, other than ours, with a process in them whose environment (NAME=VALUE each) is_marked."""
    found = {namespace_of(pid) for pid in _pids() if is_marked(_environ(pid))}
    return {name for name in found if name is not None} - {namespace_of(os.getpid()) or ""}


def living_in(namespaces: Collection[str], *, besides: Collection[int] = ()) -> list[psutil.Process]:
    """Processes in these namespaces, and those of the numbers `besides`; none that is dead, nor this one."""
    import psutil

    found = []
    for pid in _pids():
        if pid == os.getpid() or not (pid in besides or namespace_of(pid) in namespaces):
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            if started_at(pid) is not None:
                found.append(psutil.Process(pid))
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
