"""Instants inside a worker that no request shows: the worker says where it is, and goes on once it is answered.

The listening side is the test's (`Beacons`), the telling side the worker's (tests/chaos/worker.py). A name is a word
such as `stage`, or for files of a local run directory what is done, to which file, and whether it is done already.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "CHAOS_BEACONS"


@dataclass(frozen=True)
class Beacon:
    """One worker at one instant. It waits while it is looked at."""

    name: str
    pid: int
    attempt: int


@dataclass(eq=False)
class Watch:
    """An action for the first beacon that matches, after `skip` others."""

    matches: Callable[[Beacon], bool]
    action: Callable[[Beacon], None]
    skip: int
    done: bool = False


class Beacons:
    """Hears the beacons of all workers of a case; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "beacons")
        self._socket = socket.socket(socket.AF_UNIX)
        self._watches: list[Watch] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Beacons:
        self._socket.bind(self.path)
        self._socket.listen(64)
        threading.Thread(target=self._accept, name="beacons", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def on(self, matches: Callable[[Beacon], bool], action: Callable[[Beacon], None], *, skip: int = 0) -> Watch:
        watch = Watch(matches, action, skip)
        with self._lock:
            self._watches.append(watch)
        return watch

    def clear(self) -> None:
        with self._lock:
            self._watches.clear()

    def _accept(self) -> None:
        while True:
            try:
                worker, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(worker,), name="beacon", daemon=True).start()

    def _serve(self, worker: socket.socket) -> None:
        """One thread of a worker, beacon after beacon."""
        pid = struct.unpack("3i", worker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        with contextlib.suppress(OSError), worker, worker.makefile("rb") as lines:
            for line in lines:
                attempt, _, name = line.decode().rstrip("\n").partition(" ")
                for watch in self._taken(beacon := Beacon(name, pid, int(attempt))):
                    watch.action(beacon)
                worker.sendall(b"\n")

    def _taken(self, beacon: Beacon) -> list[Watch]:
        taken = []
        with self._lock:
            for watch in self._watches:
                if watch.done or not watch.matches(beacon):
                    continue
                if watch.skip:
                    watch.skip -= 1
                    continue
                watch.done = True
                taken.append(watch)
        return taken


# -- the worker's side -----------------------------------------------------------------------------------------------
_mine = threading.local()


def tell(name: str) -> None:
    """Say where this thread is, and wait for leave to go on. Nobody listens: go on."""
    path = os.environ.get(VARIABLE)
    if path is None:
        return
    with contextlib.suppress(OSError):
        if getattr(_mine, "line", None) is None:
            _mine.line = socket.socket(socket.AF_UNIX)
            _mine.line.connect(path)
        attempt = os.environ.get("LAUNCHYARD_ATTEMPT", "0")
        _mine.line.sendall(f"{attempt} {name}\n".encode())
        _mine.line.recv(1)
