"""One upload to S3 in parts, several at once, while more is written. Nothing is copied before it is sent."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from launchyard.host.priority import step_back

PARTS_AT_ONCE = 4
SEND_BYTES = 1 << 20
_Answer = Mapping[str, object]


class UploadRequests(Protocol):
    """What an upload asks of its store (stores/s3.py)."""

    @property
    def retry(self) -> Callable[[str, str, Callable[[], _Answer]], _Answer]: ...
    def call(self, method: str, path: str, *, n_bytes: int = 0, **arguments: object) -> _Answer: ...
    def attempt(self, what: str, method: str, path: str, *, n_bytes: int = 0, **arguments: object) -> _Answer: ...
    def write(self, path: str, raw: bytes) -> None: ...
    def size(self, path: str) -> int: ...


class UploadBody:
    """Bytes that lie in several places: a file for botocore, which hashes it; for aiohttp, which sends them, pieces."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = views
        self._size = sum(map(len, views))
        self._at = 0

    def __len__(self) -> int:
        return self._size

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = None) -> bytes | memoryview:
        """Returns as many bytes as are asked for and left; a copy only where they lie in several places."""
        end = self._size if size is None or size < 0 else min(self._size, self._at + size)
        found = list(self._between(self._at, end))
        self._at = end
        return found[0] if len(found) == 1 else b"".join(found)

    async def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        """From the beginning, also once it has been read."""
        self.seek(0)
        while piece := self.read(SEND_BYTES):
            yield piece

    def _between(self, begin: int, end: int) -> Iterator[memoryview]:
        start = 0
        for view in self._views:
            if begin < start + len(view) and start < end:
                yield view[max(begin - start, 0) : end - start]
            start += len(view)


class PartWriter:
    """A multipart upload: parts are sent while more is written, a few at a time. A file that fits one is put at once.

    It keeps the memory that it is given, and sends that.
    """

    def __init__(self, store: UploadRequests, path: str, *, part_bytes: int) -> None:
        self._store = store
        self._path = path
        self._part_bytes = part_bytes
        self._part: list[memoryview] = []  # the one that is not full yet
        self._free = part_bytes
        self._upload: object = None
        self._parts: list[Future[_Answer]] = []
        self._pool: ThreadPoolExecutor | None = None
        self._size = 0

    def write(self, raw: bytes | memoryview) -> None:
        view = memoryview(raw).cast("B")
        while len(view):
            self._part.append(view[: self._free])
            view = view[self._free :]
            self._free -= len(self._part[-1])
            if not self._free:
                self._send()

    def _send(self) -> None:
        if self._pool is None:
            self._upload = self._store.attempt("begin to write", "create_multipart_upload", self._path)["UploadId"]
            self._pool = ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="upload", initializer=step_back)
        self._size += self._part_bytes - self._free
        if len(self._parts) >= PARTS_AT_ONCE:
            self._parts[-PARTS_AT_ONCE].result()  # waits for a free place; raises the error of that part
        context = contextvars.copy_context()  # holds the retry budget of the caller
        self._parts.append(self._pool.submit(context.run, self._send_part, len(self._parts) + 1, self._part))
        self._part = []
        self._free = self._part_bytes

    def _send_part(self, number: int, views: list[memoryview]) -> _Answer:
        size = sum(map(len, views))

        def put() -> _Answer:
            place = {"UploadId": self._upload, "PartNumber": number}
            return self._store.call("upload_part", self._path, n_bytes=size, **place, Body=UploadBody(views))

        return {"PartNumber": number, "ETag": self._store.retry("write", self._path, put)["ETag"]}

    def close(self) -> None:
        if self._pool is None:
            self._store.write(self._path, b"".join(self._part))
            return
        if self._part:
            self._send()
        parts = [part.result() for part in self._parts]
        self._pool.shutdown()
        try:
            self._store.attempt(
                "complete", "complete_multipart_upload", self._path,
                n_bytes=self._size, UploadId=self._upload, MultipartUpload={"Parts": parts},
            )  # fmt: skip
        except FileNotFoundError:  # no such upload: an earlier try completed it, but its response was lost
            if self._store.size(self._path) != self._size:
                raise

    def discard(self) -> None:
        """Aborts the upload if the store answers now; else `sweep_uploads` does so later."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            with contextlib.suppress(Exception):
                self._store.call("abort_multipart_upload", self._path, UploadId=self._upload)
