"""The owner's side of the connections: a listener, the agents that have proved the job's secret, and their silence.

A thread of its own beats, listens and judges, however long the owner waits for a store. It decides nothing: whoever
polls sees for each agent what it said last, and whether it was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from launchyard.host.ports import FIRST_PORT, LAST_PORT, PORT_RANGE
from launchyard.launcher.agent.fleet.wire import (
    BEAT_SECONDS,
    MAX_BYTES,
    AgentState,
    Challenge,
    Hello,
    Orders,
    Welcome,
    WireError,
    WireLine,
    as_line,
    draw_nonce,
    is_proof,
    proof_of,
    read_line,
)
from launchyard.launcher.agent.signals import log_line

SILENT_SECONDS = 5.0  # without a beat, until an agent is given up
RETURN_SECONDS = 1.5  # for an agent to come back after its connection was closed: a process that died does not
_ABSENT_SECONDS = 2.0  # between two ticks: then this process did not run, and knows nothing of the others
HANDSHAKE_SECONDS = 5.0
_TICK_SECONDS = 0.1
_BIND_TRIES = 50

Loss = Literal["gone", "silent", "stuck"]


@dataclass(eq=False)
class Member:
    """One agent. `lost`: it did not come back after its connection was closed, fell silent, or was given up; final."""

    hello: Hello
    state: AgentState = field(default_factory=lambda: AgentState(phase="running"))  # until it says what it is
    order: Orders = field(default_factory=Orders)
    lost: Loss | None = None
    heard_at: float = field(default_factory=time.monotonic)
    closed_at: float | None = None
    writer: asyncio.StreamWriter | None = None

    @property
    def is_free(self) -> bool:
        return self.lost is None and self.state.phase in ("idle", "free") and not self.order.leave


class Hub:
    """Listens from its making until `close`. `address`: host:port for agents on other nodes."""

    def __init__(self, secret: str, *, host: str | None = None) -> None:
        """`host`: the interface to listen at; default: all of this machine."""
        self._secret = secret
        self._listener = listen_for_agents(host)
        self.address = f"{host or socket.gethostname()}:{self._listener.getsockname()[1]}"
        self._members: dict[str, Member] = {}
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._thread.start()

    def members(self) -> list[Member]:
        """Those that are not lost, in the order of nodes."""
        living = [member for member in list(self._members.values()) if member.lost is None]
        return sorted(living, key=lambda member: (member.hello.number, member.hello.place))

    def command(self, member: Member, order: Orders) -> None:
        """From now on this is what the agent is to do."""
        if member.order != order:
            member.order = order
            self._call(lambda: self._send_order(member))

    def give_up(self, member: Member) -> None:
        """It is lost, whatever it says: it does not do what it was told."""
        member.lost = member.lost or "stuck"
        self._call(lambda: _hang_up(member))

    def close(self) -> None:
        self._call(self._over.set)
        self._thread.join(HANDSHAKE_SECONDS)

    def _call(self, action: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # closed
            self._loop.call_soon_threadsafe(action)

    # -- in the thread -------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._meet, sock=self._listener, limit=MAX_BYTES)
        ticks = asyncio.create_task(self._tick())
        await self._over.wait()
        ticks.cancel()
        server.close()
        for writer in self._open:
            writer.transport.abort()
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=HANDSHAKE_SECONDS)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        member = None
        self._open.add(writer)
        try:
            hello = await asyncio.wait_for(self._examine(reader, writer), HANDSHAKE_SECONDS)
            member = self._join(hello, writer)
            while member is not None:
                member.state = read_line(await reader.readline(), AgentState)
                member.heard_at = time.monotonic()
        except (TimeoutError, OSError, ValueError) as error:  # ValueError: also a line that is too long
            if member is None and not isinstance(error, OSError):
                log_line(f"a connection from {_peer(writer)} was refused: {error or type(error).__name__}")
        finally:
            if member is not None and member.writer is writer:
                member.writer = None
                member.closed_at = time.monotonic()
            self._open.discard(writer)
            writer.transport.abort()

    async def _examine(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Hello:
        nonce = draw_nonce()
        writer.write(as_line(Challenge(nonce=nonce)))
        hello = read_line(await reader.readline(), Hello)
        if not is_proof(hello.proof, self._secret, "agent", nonce, hello.place):
            raise WireError("it does not know the secret of this job")
        writer.write(as_line(Welcome(proof=proof_of(self._secret, "owner", hello.nonce, hello.place))))
        await writer.drain()
        return hello

    def _join(self, hello: Hello, writer: asyncio.StreamWriter) -> Member | None:
        """The agent of a node: a new one, or one that has come back. None for a second one of a node, which leaves."""
        known = self._members.get(hello.place)
        same = known is not None and (known.hello.pid, known.hello.started) == (hello.pid, hello.started)
        if known is not None and known.lost is None and not same:
            writer.write(as_line(Orders(leave=True)))
            return None
        if known is None or known.lost is not None:
            known = self._members[hello.place] = Member(hello)
        known.writer = writer
        known.heard_at = time.monotonic()
        known.closed_at = None
        self._send_order(known)
        return known

    def _send_order(self, member: Member) -> None:
        _send(member, member.order)

    async def _tick(self) -> None:
        last = beaten = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = time.monotonic()
            if now - last > _ABSENT_SECONDS:
                self._forgive(now)
            last = now
            if now - beaten >= BEAT_SECONDS:
                beaten = now
                for member in self._members.values():
                    self._send_order(member)
            for member in self._members.values():
                _judge(member, now)

    def _forgive(self, now: float) -> None:
        """We were stopped ourselves: what came meanwhile is still unread."""
        for member in self._members.values():
            member.heard_at = now
            member.closed_at = None if member.closed_at is None else now


def _judge(member: Member, now: float) -> None:
    if member.lost is not None:
        return
    if now - member.heard_at > SILENT_SECONDS:
        member.lost = "silent"
    elif member.closed_at is not None and now - member.closed_at > RETURN_SECONDS:
        member.lost = "gone"
    if member.lost is not None:
        _hang_up(member)


def _send(member: Member, message: WireLine) -> None:
    if member.writer is not None and not member.writer.transport.is_closing():
        member.writer.write(as_line(message))


def _hang_up(member: Member) -> None:
    if member.writer is not None:
        member.writer.transport.abort()


def _peer(writer: asyncio.StreamWriter) -> str:
    name = writer.get_extra_info("peername")
    return str(name[0]) if name else "somewhere"


def listen_for_agents(host: str | None) -> socket.socket:
    """Above the ephemeral range, like the workers' ports: a site has these open between its nodes."""
    both = host is None and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    for _ in range(_BIND_TRIES):
        where = (host or "", random.randint(FIRST_PORT, LAST_PORT))
        with contextlib.suppress(OSError):
            return socket.create_server(where, family=family, dualstack_ipv6=both, backlog=1024)
    raise OSError(f"no free port in {PORT_RANGE}; end what listens there")
