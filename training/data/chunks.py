"""One chunk file of litdata: its bytes, opening it checked, and the place where a remote chunk becomes a local file.

Little-endian: u32 N, u32 offset[N + 1] (absolute; the first is 4(N + 2), the last the size of the file), then N items
end to end. Skip the header and the rest is one flat array of tokens. Knows no text, no order and no data set.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
import xxhash

from model import files
from model.shards import CorruptError
from training.data.index import ChunkDigest, ChunkEntry

Array = np.ndarray[Any, np.dtype[Any]]
MAX_BYTES = 2**32 - 1  # offsets are u32


def pack_chunk(tokens: Array, *, eos_id: int) -> tuple[bytes, int]:
    """The bytes of a chunk that holds `tokens`, and its number of items: each ends with `eos_id`, but for the last."""
    ends = np.flatnonzero(tokens == eos_id) + 1
    if len(ends) == 0 or ends[-1] != len(tokens):
        ends = np.append(ends, len(tokens))
    offsets = 4 * (len(ends) + 2) + tokens.itemsize * np.concatenate([[0], ends])
    assert offsets[-1] <= MAX_BYTES
    header = np.concatenate([[len(ends)], offsets]).astype("<u4")
    return header.tobytes() + tokens.astype(tokens.dtype.newbyteorder("<"), copy=False).tobytes(), len(ends)


def open_chunk(path: str, entry: ChunkEntry, dtype: np.dtype[Any], expected: ChunkDigest | None) -> Array:
    """The tokens of a local chunk, memory-mapped, after checking its size, its hash if known, and its header."""
    try:
        size = os.path.getsize(path)
    except FileNotFoundError as error:
        raise CorruptError(f"{path} is missing") from error
    header, count = 4 * (entry.chunk_size + 2), entry.dim or 0
    right = header + count * dtype.itemsize
    if size != right:
        raise CorruptError(f"{path} has {size} bytes instead of {right}: it is {'cut' if size < right else 'changed'}")
    raw = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))  # slicing a memmap itself takes three times as long
    if expected is not None and xxhash.xxh3_64_hexdigest(raw.data) != expected.xxh3:
        raise CorruptError(f"{path} is changed: its hash is not what was written")
    words = raw[:header].view("<u4")
    if (int(words[0]), int(words[1]), int(words[-1])) != (entry.chunk_size, header, size):
        raise CorruptError(f"{path} is changed: its header does not fit {entry.chunk_size} items in {size} bytes")
    return raw[header:].view(dtype)


def fetch_chunk(url: str, *, cache: str, compression: str | None, expected: ChunkDigest | None) -> str:
    """A local file with the plain bytes of a remote or compressed chunk. THE place where one becomes a local file.

    Kept in `cache`, under a name that depends on the URL and on the hash it must have; never seen half-written.
    """
    key = hashlib.sha256(f"{url} {expected.xxh3 if expected else ''}".encode()).hexdigest()[:32]
    path = os.path.join(cache, f"{key}.bin")
    if os.path.exists(path):
        return path
    try:
        raw = files.read(url)
    except FileNotFoundError as error:
        raise CorruptError(f"{url} is missing") from error
    if compression is not None:
        raw = _unzstd(raw, url)
    if expected is not None and (len(raw), xxhash.xxh3_64_hexdigest(raw)) != (expected.bytes, expected.xxh3):
        raise CorruptError(
            f"{url} is {'cut' if len(raw) < expected.bytes else 'changed'}: not the bytes that were written"
        )
    files.write(path, raw)
    return path


def _unzstd(raw: bytes, url: str) -> bytes:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ValueError(f"{url} is compressed with zstd; install it: pip install 'launchyard[data]'") from error
    engine = zstandard.ZstdDecompressor().decompressobj()
    try:
        plain = engine.decompress(raw)
    except zstandard.ZstdError as error:
        raise CorruptError(f"{url} is no readable zstd file: {error}") from error
    if not engine.eof:
        raise CorruptError(f"{url} is cut")
    return plain
