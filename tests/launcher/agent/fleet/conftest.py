"""A hub on loopback, and agents that connect to it: some in this process, some in processes of their own."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from xxhash import xxh3_64_hexdigest

from launchyard.launcher.agent.fleet.hub import Hub, Member
from launchyard.launcher.agent.fleet.link import Link, Who
from launchyard.launcher.agent.memory import AgentMemory
from launchyard.training.checkpoint.slots import Slot, SlotEntry, SlotHeader

SECRET = "s3cret-of-the-job"
PROCESS = """
import os, sys
from launchyard.launcher.agent.fleet.link import Link, Who
from launchyard.launcher.agent.memory import AgentMemory
from launchyard.training.checkpoint.slots import Slot, SlotEntry, SlotHeader
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


def seal(slot: Slot, step: int, content: bytes, *, attempt: int = 0) -> None:
    """As a worker leaves it, with one tensor of bytes."""
    size = len(content)
    entry = SlotEntry(
        dtype="U8", shape=(size,), offsets=(0,), sizes=(size,), start=0, length=size, xxh3=xxh3_64_hexdigest(content)
    )
    slot.break_seal()
    slot.reserve(size)
    with slot.memory(size) as memory:
        memory[:size] = content
    header = SlotHeader(step=step, attempt=attempt, time=time.time(), identity={}, train_state={}, entries={"a": entry})
    slot.seal(header)


def seal_all(memory: AgentMemory, step: int, *, workers: int = 1, size: int = 10_000) -> list[bytes]:
    """The state of a step of each worker, in the slot that it can spare; their contents."""
    memory.make_room(workers)
    contents = [random.Random(f"{step} {worker}").randbytes(size) for worker in range(workers)]
    for slot, content in zip(memory.oldest_slots(), contents, strict=True):
        seal(slot, step, content)
    return contents


def contents_of(memory: AgentMemory, step: int, size: int = 10_000) -> list[bytes]:
    found = []
    for slot in memory.slots_of(step):
        assert slot.fault_under(slot.sealed_by()) == ""
        with slot.memory(size) as there:
            found.append(bytes(there[:size]))
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
