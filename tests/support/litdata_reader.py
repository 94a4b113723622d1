"""A second reader of litdata's chunks, written from the format alone. Shares no code with the one under test."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

SIZES = {("numpy", 5): ("H", 2), ("numpy", 2): ("i", 4), ("tensor", 20): ("H", 2), ("tensor", 16): ("i", 4)}


def read_items(folder: Path) -> list[list[int]]:
    """The items of all chunks, in order."""
    index = json.loads((folder / "index.json").read_text())
    [described] = index["config"]["data_format"]
    serializer, number = described.removeprefix("no_header_").split(":")
    letter, size = SIZES[serializer, int(number)]
    items = []
    for chunk in index["chunks"]:
        raw = (folder / chunk["filename"]).read_bytes()
        assert len(raw) == chunk["chunk_bytes"]
        (count,) = struct.unpack_from("<I", raw)
        assert count == chunk["chunk_size"]
        offsets = struct.unpack_from(f"<{count + 1}I", raw, 4)
        assert offsets[0] == 4 * (count + 2)
        assert offsets[-1] == len(raw)
        assert (offsets[-1] - offsets[0]) // size == chunk["dim"]
        for start, end in itertools.pairwise(offsets):
            items.append(list(struct.unpack_from(f"<{(end - start) // size}{letter}", raw, start)))
    return items


def read_tokens(folder: Path) -> list[int]:
    return [token for item in read_items(folder) for token in item]


def write_chunks(folder: Path, tokens: list[int], *, chunk: int, data_format: str = "no_header_numpy:5") -> None:
    """A bare litdata folder, one item a chunk."""
    serializer, number = data_format.removeprefix("no_header_").split(":")
    letter, _ = SIZES[serializer, int(number)]
    folder.mkdir(parents=True)
    chunks = []
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        body = struct.pack(f"<{len(part)}{letter}", *part)
        raw = struct.pack("<3I", 1, 12, 12 + len(body)) + body
        name = f"chunk-0-{len(chunks)}.bin"
        (folder / name).write_bytes(raw)
        chunks.append({"filename": name, "chunk_bytes": len(raw), "chunk_size": 1, "dim": len(part)})
    config = {"compression": None, "encryption": None, "item_loader": "TokensLoader", "data_format": [data_format]}
    (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": config}))
