"""What the owner of a run and its agents say to each other, and agents among themselves: lines of JSON of a bounded
length. Knows no sockets.

Both sides send all that they want or are, again and again, so that a message that was lost with a connection costs
nothing. The secret of the job is never sent: each side proves to the other that it has it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launchyard.run.records import Shape

MAX_BYTES = 16_384  # of a line
BEAT_SECONDS = 1.0  # at most, from one line of each side to its next
_TEXT = 1_000
_NONCE_BYTES = 32

Phase = Literal["idle", "running", "ended", "free"]
_Side = Literal["owner", "agent", "keeper", "caller"]


class WireError(ValueError):
    """What came over a connection is no message of ours."""


class WireLine(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Challenge(WireLine):
    """The owner's first line."""

    nonce: str = Field(min_length=32, max_length=128)


class Hello(WireLine):
    """The agent's answer. `place`: the node's name at the scheduler, `number`: its place in the order of nodes."""

    place: str = Field(min_length=1, max_length=_TEXT)
    number: int = Field(ge=0)
    host: str = Field(min_length=1, max_length=_TEXT)
    pid: int = Field(ge=1)
    started: float
    nonce: str = Field(min_length=32, max_length=128)
    proof: str = Field(max_length=128)


class Welcome(WireLine):
    """The owner's proof, after which the agent takes orders."""

    proof: str = Field(max_length=128)


class NodePart(WireLine):
    """One node's part of one attempt.

    buddy: the keeper of the node that gets copies of this one's slots. source: that of a node which has copies of slots
    that this one lacks, and `source_step` is the step to get.
    """

    attempt: int = Field(ge=0)
    shape: Shape
    node_rank: int = Field(ge=0)
    rdzv_endpoint: str | None = Field(default=None, max_length=_TEXT)
    job_end: float | None = None
    grace_seconds: float | None = Field(default=None, gt=0)
    buddy: str | None = Field(default=None, max_length=_TEXT)
    source: str | None = Field(default=None, max_length=_TEXT)
    source_step: int = 0


class Orders(WireLine):
    """All that the owner wants of an agent now; sent when it changes, and every second.

    part: None: nothing is to run. stop: save together, then leave, for this reason. end: other nodes of the attempt
    have failed. others_ended: no other node will report anything more. leave: the job is over.
    """

    part: NodePart | None = None
    stop: str | None = Field(default=None, max_length=_TEXT)
    end: bool = False
    others_ended: bool = False
    leave: bool = False


class AgentState(WireLine):
    """All that an agent is now; sent when it changes, and every second.

    phase: `ended` once torchrun is over with this code (None: it was ended), `free` for the next part. steps: those
    that memory holds for all workers of this node. copies: node -> the same of its copies here. keeper: where those are
    taken and given.
    """

    attempt: int | None = None
    phase: Phase = "idle"
    code: int | None = None
    steps: tuple[int, ...] = ()
    copies: dict[int, tuple[int, ...]] = Field(default_factory=dict)
    keeper: str | None = Field(default=None, max_length=_TEXT)


# -- between agents --------------------------------------------------------------------------------------------------
class Caller(WireLine):
    """An agent's answer to the challenge of another one's keeper."""

    place: str = Field(min_length=1, max_length=_TEXT)
    nonce: str = Field(min_length=32, max_length=128)
    proof: str = Field(max_length=128)


class NodeState(WireLine):
    """The slots of one step of all workers of a node: the seal of each, in hexadecimal."""

    node_rank: int = Field(ge=0)
    step: int = Field(ge=0)
    seals: tuple[str, ...] = Field(min_length=1)


class CopyRequest(WireLine):
    """Of a caller, one a connection.

    offer: a state to be copied, in an attempt. keep: first seals of others that the caller still has, which the copies
    of those are to outlive. want: node and step of a state to be sent.
    """

    attempt: int = Field(default=0, ge=0)
    offer: NodeState | None = None
    keep: tuple[str, ...] = ()
    want: tuple[int, int] | None = None


class CopyAnswer(WireLine):
    """Of a keeper: before the bytes of an offer and after them, or before those that are wanted. why: of a refusal."""

    said: Literal["send", "have", "no"]
    why: str = Field(default="", max_length=_TEXT)
    state: NodeState | None = None


Kind = TypeVar("Kind", bound=WireLine)


def as_line(message: WireLine) -> bytes:
    return message.model_dump_json().encode() + b"\n"


def read_line(line: bytes, kind: type[Kind]) -> Kind:
    """WireError unless it is one whole message of that kind."""
    if not line.endswith(b"\n"):
        raise WireError("the connection ended within a message")
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        raise WireError(f"no {kind.__name__}: {error.error_count()} wrong values") from None


def draw_nonce() -> str:
    return secrets.token_hex(_NONCE_BYTES)


def proof_of(secret: str, side: _Side, nonce: str, place: str) -> str:
    return hmac.new(secret.encode(), f"{side} {nonce} {place}".encode(), hashlib.sha256).hexdigest()


def is_proof(proof: str, secret: str, side: _Side, nonce: str, place: str) -> bool:
    return hmac.compare_digest(proof.encode(), proof_of(secret, side, nonce, place).encode())
