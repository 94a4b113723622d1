"""The agent's side of the connection with its owner: comes back after a cut, and beats in a thread of its own.

Takes no decision: it holds the owner's last order, and how long nothing was heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass

from launchyard.launcher.agent.fleet.wire import (
    BEAT_SECONDS,
    MAX_BYTES,
    AgentState,
    Challenge,
    Hello,
    Orders,
    Welcome,
    WireError,
    as_line,
    draw_nonce,
    is_proof,
    proof_of,
    read_line,
)

_ABSENT_SECONDS = 3.0  # between two beats: then this process did not run
_CONNECT_SECONDS = 5.0
QUIET_SECONDS = 5.0  # until a connection over which nothing comes is given up for another one
AGAIN_SECONDS = 0.2


@dataclass(frozen=True)
class Who:
    """This agent, as it introduces itself; see Hello."""

    place: str
    number: int
    host: str
    pid: int
    started: float


class Link:
    """Connects at once, and again whenever the connection is lost, until `close`."""

    def __init__(self, address: str, secret: str, who: Who) -> None:
        self._address = address
        self.secret = secret  # of the job
        self.who = who
        self._state = AgentState(phase="running")  # nobody gives it a part before it has said what it is
        self._order: Orders | None = None
        self._heard_at = time.monotonic()
        self._news = threading.Event()
        self._over = False
        self._writer: asyncio.StreamWriter | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    @property
    def order(self) -> Orders | None:
        """The newest; None before the first."""
        return self._order

    @property
    def state(self) -> AgentState:
        return self._state

    def tell(self, state: AgentState) -> None:
        """The owner is told at once, and with each beat."""
        self._state = state
        with contextlib.suppress(RuntimeError):  # closed
            self._loop.call_soon_threadsafe(self._send)

    def silent_seconds(self) -> float:
        """Since the owner was heard last."""
        return time.monotonic() - self._heard_at

    def wait(self, seconds: float) -> None:
        """Until there is a new order, at most so long."""
        self._news.wait(seconds)
        self._news.clear()

    def close(self) -> None:
        self._over = True
        self._thread.join(_CONNECT_SECONDS)

    # -- in the thread -------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._stay())
        finally:
            self._loop.close()

    async def _stay(self) -> None:
        beats = asyncio.create_task(self._beat())
        meeting: asyncio.Task[None] | None = None
        while not self._over:
            if meeting is None or meeting.done():
                meeting = asyncio.create_task(self._meet())
            await asyncio.wait([meeting], timeout=AGAIN_SECONDS)
            if meeting.done():
                await asyncio.sleep(AGAIN_SECONDS)
        for task in (beats, meeting):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _meet(self) -> None:
        """One connection, to its end. What is said there by somebody without the secret is not heard."""
        host, _, port = self._address.rpartition(":")
        writer = None
        try:
            opening = asyncio.open_connection(host.strip("[]"), int(port), limit=MAX_BYTES)
            reader, writer = await asyncio.wait_for(opening, _CONNECT_SECONDS)
            await asyncio.wait_for(self._introduce(reader, writer), _CONNECT_SECONDS)
            self._writer = writer
            self._send()
            while True:
                line = await asyncio.wait_for(reader.readline(), QUIET_SECONDS)
                self._order = read_line(line, Orders)
                self._heard_at = time.monotonic()
                self._news.set()
        except (TimeoutError, OSError, ValueError):  # cut, closed, or no message of ours: once more
            return
        finally:
            self._writer = None
            if writer is not None:
                writer.transport.abort()

    async def _introduce(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        challenge = read_line(await reader.readline(), Challenge)
        nonce = draw_nonce()
        proof = proof_of(self.secret, "agent", challenge.nonce, self.who.place)
        writer.write(as_line(Hello(**vars(self.who), nonce=nonce, proof=proof)))
        welcome = read_line(await reader.readline(), Welcome)
        if not is_proof(welcome.proof, self.secret, "owner", nonce, self.who.place):
            raise WireError("the listener does not know the secret of this job")

    def _send(self) -> None:
        if self._writer is not None and not self._writer.transport.is_closing():
            self._writer.write(as_line(self._state))

    async def _beat(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            now = time.monotonic()
            if now - last > _ABSENT_SECONDS:  # the owner may have been heard all the time
                self._heard_at = now
            last = now
            self._send()
