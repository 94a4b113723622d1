"""Ports of this machine: free ones, and the range in which the workers of several nodes meet. Knows no run."""

from __future__ import annotations

import contextlib
import random
import socket

# Above the ephemeral range, so that no outgoing connection uses one of them.
FIRST_PORT = 61000
LAST_PORT = 65535
PORT_RANGE = f"{FIRST_PORT} to {LAST_PORT}"  # as messages name it
_ATTEMPTS_PER_JOB = 8  # ports between two jobs with consecutive numbers


def free_port() -> int:
    """Returns a port of the loopback interface that is free at this moment."""
    for _ in range(200):
        port = random.randint(FIRST_PORT, LAST_PORT)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port in {PORT_RANGE} on 127.0.0.1; end what listens there")


def rendezvous_port(job_id: int, attempt: int) -> int:
    """Returns a port of the range for one attempt of a job, the same on all nodes; jobs side by side get others."""
    return FIRST_PORT + (job_id * _ATTEMPTS_PER_JOB + attempt) % (LAST_PORT - FIRST_PORT + 1)
