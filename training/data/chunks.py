"""One chunk file of litdata: its bytes, checking them, and bringing them from where they lie.

Little-endian: u32 N, u32 offset[N + 1] (absolute; the first is 4(N + 2), the last the size of the file), then N items
end to end. Skip the header and the rest is one flat array of tokens. Knows no text, no order and no data set.
"""

from __future__ import annotations

import contextvars
import mmap
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import xxhash

from launchyard.host.packages import install_command
from launchyard.storage import files
from launchyard.storage.errors import CorruptError

Array = np.ndarray[Any, np.dtype[Any]]
MAX_BYTES = 2**32 - 1  # offsets are u32
PIECE_BYTES = 8 << 20  # of a chunk, asked for by themselves
PIECES_AT_ONCE = 4
READS = 3  # of a chunk whose bytes are not the right ones: something on the way may have damaged them
HEARTBEAT_SECONDS = 5.0


@dataclass(frozen=True)
class Chunk:
    """One chunk of a folder, as index.json and, where there is one, digests.json describe it."""

    path: str  # or URL
    items: int
    tokens: int
    dtype: np.dtype[Any]
    xxh3: str | None  # of the plain file
    compression: str | None

    @property
    def header(self) -> int:
        return 4 * (self.items + 2)

    @property
    def size(self) -> int:
        """Bytes of the plain file."""
        return self.header + self.tokens * self.dtype.itemsize


def pack_chunk(tokens: Array, *, eos_id: int) -> tuple[bytes, int]:
    """The bytes of a chunk that holds `tokens`, and its number of items: each ends with `eos_id`, but for the last."""
    ends = np.flatnonzero(tokens == eos_id) + 1
    if len(ends) == 0 or ends[-1] != len(tokens):
        ends = np.append(ends, len(tokens))
    offsets = 4 * (len(ends) + 2) + tokens.itemsize * np.concatenate([[0], ends])
    assert offsets[-1] <= MAX_BYTES
    header = np.concatenate([[len(ends)], offsets]).astype("<u4")
    return header.tobytes() + tokens.astype(tokens.dtype.newbyteorder("<"), copy=False).tobytes(), len(ends)


def map_file(file: int) -> Array:
    """The bytes of an open file, memory-mapped; none of an empty one."""
    try:
        return np.frombuffer(mmap.mmap(file, 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    except ValueError:
        return np.empty(0, np.uint8)


def open_chunk(chunk: Chunk) -> Array:
    """The tokens of a local chunk, mapped, after checking its size, its hash if known, and its header."""
    try:
        with open(chunk.path, "rb") as file:
            raw = map_file(file.fileno())
    except FileNotFoundError as error:
        raise CorruptError(f"{chunk.path} is missing") from error
    check_bytes(chunk, len(raw), None if chunk.xxh3 is None else xxhash.xxh3_64_hexdigest(raw.data))
    return tokens_of(chunk, raw)


def check_bytes(chunk: Chunk, size: int, xxh3: str | None) -> None:
    """CorruptError unless a file of this size and hash is the chunk."""
    if size != chunk.size:
        fault = "cut" if size < chunk.size else "changed"
        raise CorruptError(f"{chunk.path} has {size} bytes instead of {chunk.size}: it is {fault}")
    if chunk.xxh3 is not None and xxh3 != chunk.xxh3:
        raise CorruptError(f"{chunk.path} is changed: its hash is not what was written")


def tokens_of(chunk: Chunk, raw: Array) -> Array:
    """The tokens in the bytes of a chunk. CorruptError if the header is of another."""
    header = raw[: chunk.header].view("<u4")
    if (int(header[0]), int(header[1]), int(header[-1])) != (chunk.items, chunk.header, chunk.size):
        raise CorruptError(
            f"{chunk.path} is changed: its header does not fit {chunk.items} items in {chunk.size} bytes"
        )
    return raw[chunk.header :].view(chunk.dtype)


# -- bringing --------------------------------------------------------------------------------------------------------
Sink = Callable[[int, "bytes | memoryview"], None]
Note = Callable[[float, bool], None]
Read = TypeVar("Read")


def fetch_chunk(
    chunk: Chunk, sink: Sink, *, beat: Callable[[], None] = lambda: None, note: Note = lambda seconds, answered: None
) -> str:
    """Hand the plain bytes of a chunk to `sink(offset, bytes)`, in order; returns their xxh3.

    Begins again from offset 0 if the hash does not match, a few times; then, or if it is missing, CorruptError.
    `beat` is called now and then, also while nothing comes; its exceptions end the fetch. `note` is called for each
    request to a store with its seconds and its success, in the thread that made it.
    """
    for tries_left in reversed(range(READS)):
        digest = xxhash.xxh3_64()
        size = 0
        try:
            for piece in _plain(chunk, beat, note):
                beat()
                sink(size, piece)
                digest.update(piece)
                size += len(piece)
            check_bytes(chunk, size, digest.hexdigest())
        except FileNotFoundError as error:
            raise CorruptError(f"{chunk.path} is missing") from error
        except CorruptError:
            if not tries_left:
                raise
        else:
            return digest.hexdigest()
    raise AssertionError("not reached")


def put(target: Array, at: int, raw: bytes | memoryview) -> None:
    """A sink that fills an array of the right size; fetch_chunk raises for a chunk that is longer."""
    part = target[at : at + len(raw)]
    part[:] = np.frombuffer(raw, np.uint8)[: len(part)]


def _timed(note: Note, request: Callable[[], Read]) -> Read:
    began = time.perf_counter()
    answered = False
    try:
        value = request()
        answered = True
        return value
    finally:
        note(time.perf_counter() - began, answered)


def _plain(chunk: Chunk, beat: Callable[[], None], note: Note) -> Iterator[bytes | memoryview]:
    if chunk.compression is None:
        return _pieces(chunk, beat, note)
    return iter([_unzstd(_timed(note, partial(files.read, chunk.path)), chunk.path)])


def _pieces(chunk: Chunk, beat: Callable[[], None], note: Note) -> Iterator[memoryview]:
    """The bytes of a plain chunk in order, some pieces ahead asked for at once. Valid until the next one."""
    starts = deque(range(0, chunk.size + 1, PIECE_BYTES))  # a byte more: a longer file has changed
    buffers = min(len(starts), PIECES_AT_ONCE)
    free = [bytearray(min(PIECE_BYTES, chunk.size + 1)) for _ in range(buffers)]
    pending: deque[tuple[bytearray, Future[int]]] = deque()
    context = contextvars.copy_context()  # holds the retry budget of the caller

    def read(start: int, buffer: bytearray) -> int:
        length = min(PIECE_BYTES, chunk.size + 1 - start)
        read_piece = partial(context.copy().run, files.read_into, chunk.path, start, memoryview(buffer)[:length])
        return _timed(note, read_piece)

    pool = ThreadPoolExecutor(buffers, thread_name_prefix="fetch-pieces")
    try:
        while starts or pending:
            while starts and free:
                buffer = free.pop()
                pending.append((buffer, pool.submit(read, starts.popleft(), buffer)))
            buffer, future = pending.popleft()
            while not wait([future], HEARTBEAT_SECONDS).done:
                beat()
            yield memoryview(buffer)[: future.result()]
            free.append(buffer)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _unzstd(raw: bytes, url: str) -> bytes:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ValueError(f"{url} is compressed with zstd; install it: {install_command('data')}") from error
    engine = zstandard.ZstdDecompressor().decompressobj()
    try:
        plain = engine.decompress(raw)
    except zstandard.ZstdError as error:
        raise CorruptError(f"{url} is no readable zstd file: {error}") from error
    if not engine.eof:
        raise CorruptError(f"{url} is cut")
    return plain
