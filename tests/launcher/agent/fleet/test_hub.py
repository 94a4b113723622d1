"""Owner and agents on real sockets: who is let in, what is believed, and when somebody counts as lost."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.launcher.agent.fleet import hub as hub_module
from launchyard.launcher.agent.fleet.wire import (
    MAX_BYTES,
    AgentState,
    Challenge,
    Orders,
    Welcome,
    WireError,
    as_line,
    draw_nonce,
    read_line,
)
from tests.launcher.agent.fleet.conftest import Cable, Office, wait

BOUNDED = 10.0


@given(st.binary(max_size=300))
def test_whatever_comes_is_a_message_or_refused(raw: bytes) -> None:
    for kind in (Orders, AgentState):
        try:
            read_line(raw + b"\n", kind)
        except WireError:
            continue


@pytest.mark.parametrize(
    "line", [b'{"attempt": "1"}\n', b'{"attempt": 1, "more": 2}\n', b'{"phase": "flying"}\n', b'{"attempt": 1}']
)
def test_what_is_nearly_a_message_is_none(line: bytes) -> None:
    with pytest.raises(WireError):
        read_line(line, AgentState)


def test_orders_arrive_and_states_come_back(office: Office) -> None:
    link = office.link("node1")
    member = office.member("node1")
    office.hub.command(member, Orders(stop="preempted"))
    wait(lambda: link.order == Orders(stop="preempted"))
    link.tell(AgentState(attempt=3, phase="running"))
    wait(lambda: member.state == AgentState(attempt=3, phase="running"))


def test_an_agent_is_free_once_it_has_said_so(office: Office) -> None:
    """Else it gets a part before it can say where its neighbour's copies go."""
    link = office.link("node1")
    member = office.member("node1")
    wait(lambda: link.order is not None)
    heard = member.heard_at
    wait(lambda: member.heard_at > heard)
    assert not member.is_free
    link.tell(AgentState(keeper="host:1"))
    wait(lambda: member.is_free)
    assert member.state.keeper == "host:1"


def test_the_wrong_secret_is_not_let_in_and_told_nothing(office: Office, capfd: pytest.CaptureFixture[str]) -> None:
    link = office.link("node1", secret="another")
    said = ""

    def refused() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "does not know the secret" in said

    wait(refused)
    assert office.hub.members() == [] and link.order is None
    assert "another" not in said and "s3cret" not in said


def test_an_agent_takes_no_orders_of_one_who_does_not_know_the_secret(office: Office) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = office.link("node1", address=f"127.0.0.1:{listener.getsockname()[1]}")
        near, _ = listener.accept()
        with near:
            near.sendall(as_line(Challenge(nonce=draw_nonce())))
            assert b"proof" in near.recv(MAX_BYTES)
            near.sendall(as_line(Welcome(proof="0" * 64)) + as_line(Orders(leave=True)))
            near.settimeout(BOUNDED)
            assert near.recv(1) == b"", "it hangs up"
        assert link.order is None


@pytest.mark.parametrize("sent", [b"x" * (2 * MAX_BYTES), b"GET / HTTP/1.1\r\n\r\n", b"{}\n"])
def test_what_is_too_long_or_no_message_is_hung_up_on(sent: bytes, office: Office) -> None:
    host, _, port = office.hub.address.rpartition(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.settimeout(BOUNDED)
        stranger.recv(MAX_BYTES)
        try:
            stranger.sendall(sent)
            assert stranger.recv(1) == b""
        except ConnectionError:  # it had not read all of that
            pass
    assert office.link("node1") and office.member("node1").lost is None, "others are served as before"


def test_one_that_says_nothing_is_hung_up_on(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "HANDSHAKE_SECONDS", 0.3)
    host, _, port = office.hub.address.rpartition(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.settimeout(BOUNDED)
        while stranger.recv(MAX_BYTES):
            continue


# -- losses ----------------------------------------------------------------------------------------------------------
def test_a_frozen_agent_is_silent_and_a_killed_one_is_gone(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "SILENT_SECONDS", 3.0)
    monkeypatch.setattr(hub_module, "RETURN_SECONDS", 0.3)
    processes = {name: office.process(name) for name in ("frozen", "killed")}
    frozen, killed = office.member("frozen"), office.member("killed")
    began = time.monotonic()
    processes["frozen"].send_signal(signal.SIGSTOP)
    processes["killed"].kill()
    wait(lambda: killed.lost)
    assert (killed.lost, frozen.lost) == ("gone", None)
    wait(lambda: frozen.lost)
    assert frozen.lost == "silent"
    assert time.monotonic() - began > 1.5
    processes["frozen"].send_signal(signal.SIGCONT)
    assert office.member("frozen") is not frozen, "it comes back as one that has no part in anything"


def test_a_short_cut_of_the_network_is_no_loss(office: Office) -> None:
    cable = Cable(office.hub.address)
    link = office.link("node1", address=cable.address)
    member = office.member("node1")
    link.tell(AgentState(attempt=0, phase="running"))
    wait(lambda: member.state.phase == "running")
    cable.cut()
    link.tell(AgentState(attempt=0, phase="ended", code=1))
    office.hub.command(member, Orders(end=True))
    wait(lambda: member.state.phase == "ended")
    wait(lambda: link.order == Orders(end=True))
    assert member.lost is None and office.member("node1") is member
    cable.close()


def test_a_second_agent_of_a_node_is_sent_away(office: Office) -> None:
    office.link("node1")
    member = office.member("node1")
    second = office.link("node1", pid=os.getpid() + 1)
    wait(lambda: second.order == Orders(leave=True))
    assert office.member("node1") is member and member.lost is None
