"""A hub on loopback, and agents that connect to it: some in this process, some in processes of their own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from launchyard.launcher.agent.fleet.hub import Hub, Member
from launchyard.launcher.agent.fleet.link import Link, Who

SECRET = "s3cret-of-the-job"
PROCESS = """
import os, sys
from launchyard.launcher.agent.fleet.link import Link, Who
link = Link(sys.argv[1], os.environ["SECRET"], Who(sys.argv[2], 0, "host", os.getpid(), 1.0))
while True:
    link.wait(1.0)
"""


def wait(done: Callable[[], Any], seconds: float = 15.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
    return found


class Office:
    """The owner's side, and all that came to it."""

    def __init__(self) -> None:
        self.hub = Hub(SECRET, host="127.0.0.1")
        self._links: list[Link] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def link(self, place: str, *, number: int = 0, secret: str = SECRET, address: str = "", pid: int = 0) -> Link:
        who = Who(place, number, "127.0.0.1", pid or os.getpid(), 1.0)
        self._links.append(Link(address or self.hub.address, secret, who))
        return self._links[-1]

    def process(self, place: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-c", PROCESS, self.hub.address, place]
        self._processes.append(subprocess.Popen(argv, env={**os.environ, "SECRET": SECRET}))
        return self._processes[-1]

    def member(self, place: str) -> Member:
        def named() -> Member | None:
            return next((member for member in self.hub.members() if member.hello.place == place), None)

        found: Member = wait(named)
        return found

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.hub.close()
        for link in self._links:
            link.close()


class Cable:
    """A way to the hub that can be cut."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._there = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._there)
            except OSError:
                return
            self._ends += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(one, other), daemon=True).start()

    def close(self) -> None:
        self._listener.close()


def _pump(one: socket.socket, other: socket.socket) -> None:
    try:
        while data := one.recv(65_536):
            other.sendall(data)
    except OSError:
        pass
    for end in (one, other):
        end.close()


@pytest.fixture
def office() -> Iterator[Office]:
    made = Office()
    yield made
    made.close()
