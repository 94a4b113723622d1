"""A slot: the state of one rank in a file of the kernel's memory, which outlives the worker. The format, and no policy.

Tensors first, then a JSON header with a hash of each, and at the very beginning the seal, which is written last and
broken first: what is not sealed does not exist. Light: knows no tensors, only bytes.
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

NODE_SHARE = 4  # two slots of each worker may take one part in so many of a node's memory, unless the recipe insists
DATA_START = 4096
_MAGIC = b"LYSLOT01"
_SEAL = struct.Struct("<8sQQ16s")  # magic, first byte of the header, its bytes, their xxh3


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

    `owed`: the step of a checkpoint that was due before this one and was still on its way. Of rank 0 alone: `rows`, as
    a manifest has them, and `lines` that were not written yet, by the stem of their file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    attempt: int
    time: float
    identity: dict[str, Any]
    train_state: dict[str, Any]
    entries: dict[str, SlotEntry]
    owed: int | None = None
    rows: dict[str, JsonObject] = Field(default_factory=dict)
    lines: dict[str, list[str]] = Field(default_factory=dict)


class Slot:
    """One file of memory, by its path: /proc/PID/fd/N of the process that owns it. OSError if it cannot be opened."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

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
        from xxhash import xxh3_64_hexdigest

        seal = os.pread(self._fd, _SEAL.size, 0)
        if len(seal) < _SEAL.size or not seal.startswith(_MAGIC):
            return None
        _, at, length, digest = _SEAL.unpack(seal)
        raw = os.pread(self._fd, length, at) if at + length <= os.fstat(self._fd).st_size else b""
        if xxh3_64_hexdigest(raw).encode() != digest:
            return None
        return SlotHeader.model_validate(json.loads(raw))

    def empty(self) -> None:
        """Give its memory back. Nobody may have mapped it."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        os.close(self._fd)


def newest_step(slots: list[Slot]) -> int | None:
    """Of those that are sealed; None if none is."""
    headers = [slot.header() for slot in slots]
    return max((header.step for header in headers if header is not None), default=None)


def slot_bytes(entries: dict[str, SlotEntry]) -> int:
    """The bytes of all tensors, gaps included; never none, which cannot be mapped."""
    end = max((entry.start + entry.length for entry in entries.values()), default=0)
    return max(ALIGNMENT, aligned(end))


def aligned(at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT
