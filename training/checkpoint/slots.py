"""A slot: the state of one rank in a file of the kernel's memory, which outlives the worker. The format, and no policy.

Tensors first, then a JSON header with a hash of each, and at the very beginning the seal, which is written last and
broken first: what is not sealed does not exist. Beside it the agent notes of which seal another node has a copy.
Light: knows no tensors, only bytes.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from launchyard.storage.damage import JsonObject
from launchyard.storage.safetensors import ALIGNMENT

# Two slots of each worker may take one part in so many of a node's memory, unless the recipe insists, and the copies of
# those of a neighbour one more.
NODE_SHARE = 4
DATA_START = 4096
_MAGIC = b"LYSLOT01"
_SEAL = struct.Struct("<8sQQ16s")  # magic, first byte of the header, its bytes, their xxh3
_NOTED = slice(64, 64 + _SEAL.size)  # the seal of which there is a copy
_WANTED = 128  # one byte: does the agent make copies?
_PART = 1 << 22  # bytes that are hashed at a time


class SlotEntry(BaseModel):
    """This rank's part of one tensor, and its place in the slot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int
    length: int
    xxh3: str = ""  # once it is sealed

    def same_cut(self, other: SlotEntry) -> bool:
        return self.model_copy(update={"xxh3": ""}) == other.model_copy(update={"xxh3": ""})


class SlotHeader(BaseModel):
    """What a slot says of its tensors. `identity`: facts that a run must have in common with it.

    `turn`: how often its attempt had gone back to an earlier step by then. `owed`: the step of a checkpoint that was
    due before this one and was still on its way. Of rank 0 alone: `rows`, as a manifest has them, and `lines` that were
    not written yet, by the stem of their file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    attempt: int
    time: float
    identity: dict[str, Any]
    train_state: dict[str, Any]
    entries: dict[str, SlotEntry]
    turn: int = 0
    owed: int | None = None
    rows: dict[str, JsonObject] = Field(default_factory=dict)
    lines: dict[str, list[str]] = Field(default_factory=dict)

    @property
    def place(self) -> tuple[int, int, int]:
        """Slots of different ranks that have this in common are of one moment."""
        return self.step, self.attempt, self.turn


class Slot:
    """One file of memory, by its path: /proc/PID/fd/N of the process that owns it. OSError if it cannot be opened."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._known: tuple[bytes, int | None] = (b"", None)  # a seal, and the step under it

    def fileno(self) -> int:
        return self._fd

    def reserve(self, size: int) -> None:
        """Make room for so many bytes of tensors, now: a page that is missing later would kill who touches it."""
        if os.fstat(self._fd).st_size < DATA_START + size:
            os.posix_fallocate(self._fd, 0, DATA_START + size)

    def memory(self, size: int) -> mmap.mmap:
        """The bytes of the tensors, once they are reserved; entries start from the first of them."""
        return mmap.mmap(self._fd, size, offset=DATA_START)

    def break_seal(self) -> None:
        os.pwrite(self._fd, bytes(_SEAL.size), 0)

    def seal(self, header: SlotHeader) -> None:
        from xxhash import xxh3_64_hexdigest

        raw = json.dumps(header.model_dump(), separators=(",", ":")).encode()  # not pydantic's, which has no NaN
        at = DATA_START + slot_bytes(header.entries)
        written = 0
        while written < len(raw):
            written += os.pwrite(self._fd, raw[written:], at + written)
        os.pwrite(self._fd, _SEAL.pack(_MAGIC, at, len(raw), xxh3_64_hexdigest(raw).encode()), 0)

    def header(self) -> SlotHeader | None:
        """None of a slot that is not sealed, or whose header is damaged. The tensors are not looked at."""
        seal = self.sealed_by()
        return self._header_under(seal) if seal else None

    def _header_under(self, seal: bytes) -> SlotHeader | None:
        from xxhash import xxh3_64_hexdigest

        _, at, length, digest = _SEAL.unpack(seal)
        raw = os.pread(self._fd, length, at) if at + length <= os.fstat(self._fd).st_size else b""
        if xxh3_64_hexdigest(raw).encode() != digest:
            return None
        return SlotHeader.model_validate(json.loads(raw))

    def step(self) -> int | None:
        """Of the header, which is not read twice."""
        seal = self.sealed_by()
        if seal != self._known[0]:
            header = self._header_under(seal) if seal else None
            self._known = (seal, None if header is None else header.step)
        return self._known[1]

    # -- copies ----------------------------------------------------------------------------------------------------
    def sealed_by(self) -> bytes:
        """The seal, which is another one after each change; empty if there is none."""
        seal = os.pread(self._fd, _SEAL.size, 0)
        return seal if len(seal) == _SEAL.size and seal.startswith(_MAGIC) else b""

    def adopt(self, seal: bytes) -> str:
        """Seal bytes that came from elsewhere. Returns what about them is not as it was sealed, and then does not."""
        fault = self.fault_under(seal)
        if not fault:
            os.pwrite(self._fd, seal, 0)
        return fault

    def fault_under(self, seal: bytes) -> str:
        """What differs from what was sealed with this; empty if nothing does."""
        header = self._header_under(seal)
        if header is None:
            return "its header is changed"
        with self.memory(slot_bytes(header.entries)) as memory:
            for key, entry in header.entries.items():
                if _digest(memory, entry.start, entry.length) != entry.xxh3:
                    return f"{key} is changed"
        return ""

    def await_copies(self, wanted: bool) -> None:
        """From now on its worker waits for them, or does not."""
        os.pwrite(self._fd, bytes([wanted]), _WANTED)

    def note_copy(self, seal: bytes) -> None:
        """There is a copy of what that seals."""
        os.pwrite(self._fd, seal, _NOTED.start)

    def forget_copy(self) -> None:
        self.note_copy(bytes(_SEAL.size))

    @property
    def wants_copies(self) -> bool:
        return os.pread(self._fd, 1, _WANTED) == b"\1"

    @property
    def awaits_copy(self) -> bool:
        """True while it is sealed, and wanted elsewhere, where it is not yet."""
        raw = os.pread(self._fd, _WANTED + 1, 0)
        sealed = raw[: _SEAL.size]
        return raw[_WANTED:] == b"\1" and sealed.startswith(_MAGIC) and raw[_NOTED] != sealed

    def empty(self) -> None:
        """Give its memory back. Nobody may have mapped it."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        os.close(self._fd)


def newest_step(slots: list[Slot]) -> int | None:
    """Of those that are sealed; None if none is."""
    return max((step for slot in slots if (step := slot.step()) is not None), default=None)


def sealed_bytes(seal: bytes) -> int:
    """From DATA_START to the end of the header. ValueError if it is no seal, or one of nothing."""
    if len(seal) != _SEAL.size or not seal.startswith(_MAGIC):
        raise ValueError("no seal of a slot")
    _, at, length, _ = _SEAL.unpack(seal)
    if at < DATA_START or not length:
        raise ValueError("the seal of a slot without a header")
    return int(at + length - DATA_START)


def slot_bytes(entries: dict[str, SlotEntry]) -> int:
    """The bytes of all tensors, gaps included; never none, which cannot be mapped."""
    end = max((entry.start + entry.length for entry in entries.values()), default=0)
    return max(ALIGNMENT, aligned(end))


def aligned(at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT


def _digest(memory: mmap.mmap, start: int, length: int) -> str:
    """Part by part: a thread that hashes holds up no other for long."""
    from xxhash import xxh3_64

    found = xxh3_64()
    with memoryview(memory) as view:
        for at in range(start, start + length, _PART):
            with view[at : min(at + _PART, start + length)] as part:
                found.update(part)
    return str(found.hexdigest())
