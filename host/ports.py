"""Ports of this machine: free ones, and the range in which the workers of several nodes meet. Knows no run."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


_PORTS = (61000, 65535)  # above the ephemeral range, so that no outgoing connection sits on one


def free_port() -> int:
    """A port of the loopback interface that nobody listens on, at this moment."""
    for _ in range(200):
        port = random.randint(*_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port between {_PORTS[0]} and {_PORTS[1]} on 127.0.0.1")


PORTS = 61000, 4536  # first, how many: above the ephemeral range
