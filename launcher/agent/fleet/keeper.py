"""The keeper of a node: listens for the agents of other nodes, takes copies of their slots, and gives them back.

A thread for each connection, at low priority. What arrives is a copy once every hash of it is right. Takes no decision
on what is copied, or who needs it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from launchyard.host.priority import step_back
from launchyard.launcher.agent.fleet.copies import Copies, Copy
from launchyard.launcher.agent.fleet.hub import listen_for_agents
from launchyard.launcher.agent.fleet.stream import Stream, answer_call
from launchyard.launcher.agent.fleet.wire import CopyAnswer, CopyRequest, NodeState
from launchyard.launcher.agent.signals import log_line

CALLS = 16  # connections at a time; further ones come again
_AGAIN_SECONDS = 0.1


class Keeper:
    """Listens from its making until `close`. `address`: host:port, for agents of other nodes."""

    def __init__(self, copies: Copies, secret: str, *, host: str) -> None:
        """`host`: by which others reach this machine."""
        self._copies = copies
        self._secret = secret
        self._attempt = 0
        self._listener = listen_for_agents(None)
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self._calls = threading.BoundedSemaphore(CALLS)
        self._over = False
        threading.Thread(target=self._serve, name="keeper", daemon=True).start()

    def begin(self, attempt: int) -> None:
        """From now on nothing of an earlier attempt is taken: another agent may be in the place of its sender."""
        self._attempt = attempt

    def close(self) -> None:
        self._over = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while not self._over:
            try:
                end, peer = self._listener.accept()
            except OSError:  # closed, or no file is free for it
                time.sleep(_AGAIN_SECONDS)
                continue
            if not self._calls.acquire(blocking=False):
                end.close()
                continue
            threading.Thread(target=self._meet, args=(end, str(peer[0])), name="keeper-call", daemon=True).start()

    def _meet(self, end: socket.socket, peer: str) -> None:
        step_back()
        try:
            with Stream(end) as stream:
                answer_call(stream, self._secret)
                request = stream.read(CopyRequest)
                if request.offer is not None:
                    with self._copies.lock(request.offer.node_rank):
                        self._take(stream, request, request.offer)
                elif request.want is not None:
                    with self._copies.lock(request.want[0]):
                        self._give(stream, *request.want)
        except ValueError as error:
            if not self._over:
                log_line(f"a connection from {peer} was ended: {error}")
        except OSError:  # it comes again
            pass
        finally:
            self._calls.release()

    def _take(self, stream: Stream, request: CopyRequest, state: NodeState) -> None:
        if request.attempt < self._attempt:
            stream.write(CopyAnswer(said="no", why=f"attempt {self._attempt} is under way"))
            return
        if self._copies.holds(state):
            stream.write(CopyAnswer(said="have"))
            return
        room = self._copies.make_room(state, request.keep)
        if isinstance(room, str):
            stream.write(CopyAnswer(said="no", why=room))
            return
        stream.write(CopyAnswer(said="send"))
        why = _fill(stream, room, state)
        if not why:
            room.attempt = request.attempt
            room.state = state  # last
        stream.write(CopyAnswer(said="no" if why else "have", why=why))

    def _give(self, stream: Stream, node_rank: int, step: int) -> None:
        found = self._copies.find(node_rank, step)
        if found is None or found.state is None:
            stream.write(CopyAnswer(said="no", why=f"no copy of step {step} of node {node_rank} is here"))
            return
        stream.write(CopyAnswer(said="send", state=found.state))
        for slot, seal in zip(found.slots, found.state.seals, strict=False):
            stream.send(slot, bytes.fromhex(seal))


def _fill(stream: Stream, room: Copy, state: NodeState) -> str:
    """Returns what is wrong with what came; empty if nothing is. All of it is taken from the connection."""
    sealed = list(zip(room.slots, (bytes.fromhex(seal) for seal in state.seals), strict=False))
    for slot, seal in sealed:
        stream.receive(slot, seal)
    return next((fault for slot, seal in sealed if (fault := slot.fault_under(seal))), "")
