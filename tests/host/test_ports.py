"""Ports: those of the range and no others, and no two attempts side by side on one."""

from __future__ import annotations

import socket

from launchyard.host.ports import FIRST_PORT, LAST_PORT, free_port, rendezvous_port


def test_attempts_side_by_side_get_ports_of_their_own() -> None:
    drawn = [rendezvous_port(job, attempt) for job in range(4_000_000, 4_000_060) for attempt in range(8)]
    assert len(set(drawn)) == len(drawn)
    ports = {rendezvous_port(job, attempt) for job in range(20_000) for attempt in (0, 1)}
    assert ports <= set(range(FIRST_PORT, LAST_PORT + 1))


def test_a_free_port_can_be_opened() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
        assert FIRST_PORT <= server.getsockname()[1] <= LAST_PORT
