"""One connection between the agents of two nodes: both prove the job's secret, then lines, and the bytes of slots.

Blocking, for threads of their own at low priority; nothing is waited for without a limit. Knows no policy.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import BinaryIO, TypeVar, cast

from launchyard.launcher.agent.fleet.wire import (
    MAX_BYTES,
    Caller,
    Challenge,
    Welcome,
    WireError,
    WireLine,
    as_line,
    draw_nonce,
    is_proof,
    proof_of,
    read_line,
)
from launchyard.training.checkpoint.slots import DATA_START, Slot, sealed_bytes

STALL_SECONDS = 5.0  # without a byte, until a connection is given up
HASH_SECONDS = 60.0  # the same while the other side looks whether all of it is right
_PART_BYTES = 1 << 22  # between two looks at what may have changed meanwhile

Kind = TypeVar("Kind", bound=WireLine)


class Stream:
    """OSError if the connection is cut; ValueError for what is no message of ours, WireError among them."""

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(STALL_SECONDS)
        self._socket = end
        self._reader = end.makefile("rb")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._reader.close()
        self._socket.close()

    def be_patient(self) -> None:
        """The other side has work to do before it answers."""
        self._socket.settimeout(HASH_SECONDS)

    # -- lines ---------------------------------------------------------------------------------------------------------
    def read(self, kind: type[Kind]) -> Kind:
        return read_line(self._reader.readline(MAX_BYTES), kind)

    def write(self, message: WireLine) -> None:
        self._socket.sendall(as_line(message))

    # -- slots ---------------------------------------------------------------------------------------------------------
    def send(self, slot: Slot, seal: bytes, goes_on: Callable[[], bool] = lambda: True) -> None:
        """What the seal is of. ConnectionAbortedError once `goes_on` says that it is not there any more."""
        with _file_of(slot) as file:
            for start, count in _parts(sealed_bytes(seal)):
                if not goes_on():
                    raise ConnectionAbortedError("what was to be sent is not there any more")
                if self._socket.sendfile(file, DATA_START + start, count) != count:
                    raise ConnectionAbortedError("a slot has become shorter")

    def receive(self, slot: Slot, seal: bytes) -> None:
        """Into memory that is reserved for it. It is not sealed by that."""
        size = sealed_bytes(seal)
        slot.reserve(size)
        with slot.memory(size) as memory, memoryview(memory) as view:
            for start, count in _parts(size):
                with view[start : start + count] as part:
                    if self._reader.readinto(part) != count:
                        raise ConnectionAbortedError("the connection ended within a slot")


def _parts(size: int) -> Iterator[tuple[int, int]]:
    """First byte and number of bytes of each."""
    for start in range(0, size, _PART_BYTES):
        yield start, min(_PART_BYTES, size - start)


@contextmanager
def _file_of(slot: Slot) -> Iterator[BinaryIO]:
    with os.fdopen(os.dup(slot.fileno()), "rb", buffering=0) as file:
        yield cast("BinaryIO", file)


# -- greetings -------------------------------------------------------------------------------------------------------
def call_keeper(address: str, secret: str, place: str) -> Stream:
    """A connection to the keeper of another node, which has proved that it knows the secret."""
    host, _, port = address.rpartition(":")
    stream = Stream(socket.create_connection((host.strip("[]"), int(port)), STALL_SECONDS))
    try:
        challenge = stream.read(Challenge)
        nonce = draw_nonce()
        proof = proof_of(secret, "caller", challenge.nonce, place)
        stream.write(Caller(place=place, nonce=nonce, proof=proof))
        if not is_proof(stream.read(Welcome).proof, secret, "keeper", nonce, place):
            raise WireError("the listener does not know the secret of this job")
    except BaseException:
        stream.__exit__(None, None, None)
        raise
    return stream


def answer_call(stream: Stream, secret: str) -> str:
    """The place of the caller, which has proved the same. WireError if it has not."""
    nonce = draw_nonce()
    stream.write(Challenge(nonce=nonce))
    caller = stream.read(Caller)
    if not is_proof(caller.proof, secret, "caller", nonce, caller.place):
        raise WireError("it does not know the secret of this job")
    stream.write(Welcome(proof=proof_of(secret, "keeper", caller.nonce, caller.place)))
    return caller.place
