"""One split on its way to disk: tokens in, full chunks out, and the state for a restart. Knows no text."""

from __future__ import annotations

import json

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict

from launchyard.storage import files
from launchyard.training.data.chunks import MAX_BYTES, Array, pack_chunk
from launchyard.training.data.index import (
    DIGESTS,
    INDEX,
    ITEM_BYTES,
    ChunkDigest,
    ChunkEntry,
    Digests,
    RowsDigest,
    SplitEntry,
)

DATA_FORMAT = {"uint16": "no_header_numpy:5", "int32": "no_header_numpy:2", "uint32": "no_header_numpy:6"}
LEAF = json.dumps([1, {"type": None, "context": None, "children_spec": []}])  # litdata's tree of one array an item


class SplitState(BaseModel):
    """The state of a split in the journal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunks: list[ChunkEntry] = []
    digests: dict[str, ChunkDigest] = {}
    documents: int = 0
    unfinished: bool = False
    tail: str | None = None
    tail_tokens: int = 0
    tail_xxh3: str = ""


class SplitWriter:
    """Writes chunks of exactly `chunk_tokens` tokens (the last one fewer) as they fill up."""

    def __init__(self, folder: str, *, chunk_tokens: int, dtype: str, eos_id: int, bos_id: int | None = None) -> None:
        self.folder = folder
        self.eos_id = eos_id
        self.bos_id = bos_id
        self._buffer: Array = np.empty(chunk_tokens, dtype=dtype)
        self._filled = 0
        self._chunks: list[ChunkEntry] = []
        self._digests: dict[str, ChunkDigest] = {}
        self.documents = 0
        self.unfinished = False  # a document has begun and not ended

    @property
    def n_tokens(self) -> int:
        return sum(chunk.dim or 0 for chunk in self._chunks) + self._filled

    @property
    def n_chunks(self) -> int:
        return len(self._chunks)

    def add(self, ids: Array) -> None:
        """Go on with the current document, or begin one."""
        if not self.unfinished and self.bos_id is not None:
            self.append(np.array([self.bos_id], dtype=self._buffer.dtype))
        self.unfinished = True
        self.append(ids)

    def end_document(self) -> None:
        """End the current document, if there is one."""
        if self.unfinished:
            self.append(np.array([self.eos_id], dtype=self._buffer.dtype))
            self.documents += 1
            self.unfinished = False

    def append(self, ids: Array) -> None:
        """These tokens as they are, with no token before or after them."""
        while len(ids):
            part = ids[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            ids = ids[len(part) :]
            if self._filled == len(self._buffer):
                self._write_chunk()

    def _write_chunk(self) -> None:
        raw, items = pack_chunk(self._buffer[: self._filled], eos_id=self.eos_id)
        name = f"chunk-0-{len(self._chunks)}.bin"
        files.write(f"{self.folder}/{name}", raw, sync=True)
        self._chunks.append(ChunkEntry(filename=name, chunk_bytes=len(raw), chunk_size=items, dim=self._filled))
        self._digests[name] = ChunkDigest(bytes=len(raw), tokens=self._filled, xxh3=xxhash.xxh3_64_hexdigest(raw))
        self._filled = 0

    def finish(self, rows: RowsDigest | None = None) -> SplitEntry:
        """Write the last chunk, then digests.json and index.json."""
        if self._filled:
            self._write_chunk()
        digests = Digests(chunks=self._digests, rows=rows)
        text = digests.model_dump_json(indent=1, exclude_none=True)
        files.write(f"{self.folder}/{DIGESTS}", text.encode() + b"\n", sync=True)
        files.write(f"{self.folder}/{INDEX}", json.dumps(self._index()).encode(), sync=True)
        return SplitEntry(
            tokens=self.n_tokens, documents=self.documents, chunks=len(self._chunks), digest=digests.digest
        )

    def _index(self) -> dict[str, object]:
        config = {
            "compression": None,
            "chunk_size": len(self._buffer),
            "chunk_bytes": None,
            "data_format": [DATA_FORMAT[self._buffer.dtype.name]],
            "data_spec": LEAF,
            "encryption": None,
            "item_loader": "TokensLoader",
        }
        return {"chunks": [chunk.model_dump() for chunk in self._chunks], "config": config}

    # -- state for a restart -------------------------------------------------------------------------------------
    def save(self, tail: str) -> SplitState:
        """Write the tokens of the chunk that is not full yet to `tail`; the rest is in the returned state."""
        raw = self._buffer[: self._filled].tobytes()
        if raw:
            files.write(tail, raw, sync=True)
        return SplitState(
            chunks=self._chunks, digests=self._digests, documents=self.documents, unfinished=self.unfinished,
            tail=tail if raw else None, tail_tokens=self._filled, tail_xxh3=xxhash.xxh3_64_hexdigest(raw),
        )  # fmt: skip

    def restore(self, state: SplitState) -> bool:
        """Go on from a saved state; False, and nothing changed, if its files have changed."""
        raw = files.read(state.tail) if state.tail and files.exists(state.tail) else b""
        tail_intact = (
            len(raw) == state.tail_tokens * self._buffer.itemsize and xxhash.xxh3_64_hexdigest(raw) == state.tail_xxh3
        )
        if not tail_intact or not all(self._is_complete(name, digest) for name, digest in state.digests.items()):
            return False
        self._chunks = list(state.chunks)
        self._digests = dict(state.digests)
        self._filled = state.tail_tokens
        self.documents = state.documents
        self.unfinished = state.unfinished
        self._buffer[: self._filled] = np.frombuffer(raw, dtype=self._buffer.dtype)
        return True

    def cut_back(self, *, tokens: int, documents: int) -> None:
        """Goes back to the end of an earlier document. The files of later chunks stay until they are written anew."""
        full, rest = divmod(tokens, len(self._buffer))
        if full < len(self._chunks):
            raw = files.read(f"{self.folder}/{self._chunks[full].filename}")
            ids = np.frombuffer(
                raw, self._buffer.dtype.newbyteorder("<"), offset=4 * (self._chunks[full].chunk_size + 2)
            )
            self._buffer[:rest] = ids[:rest]
        self._chunks = self._chunks[:full]
        self._digests = {chunk.filename: self._digests[chunk.filename] for chunk in self._chunks}
        self._filled = rest
        self.documents = documents
        self.unfinished = False

    def _is_complete(self, name: str, digest: ChunkDigest) -> bool:
        path = f"{self.folder}/{name}"
        return files.exists(path) and xxhash.xxh3_64_hexdigest(files.read(path)) == digest.xxh3


def check_chunk_tokens(chunk_tokens: int, dtype: str) -> None:
    """ValueError unless chunks of that many tokens can be addressed by the u32 offsets of their header."""
    most = (MAX_BYTES - 8) // (ITEM_BYTES[dtype] + 4)  # every token might end an item
    if not 2 <= chunk_tokens <= most:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; a chunk holds 2 to {most} tokens of {dtype}")
