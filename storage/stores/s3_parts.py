"""One upload to S3 in parts, several at once, while more is written."""

from __future__ import annotations

import contextlib
import contextvars
import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from launchyard.host.priority import step_back

PARTS_AT_ONCE = 4


class Requests(Protocol):
    """What an upload asks of its store (stores/s3.py)."""

    @property
    def retry(self) -> Callable[..., Any]: ...
    def call(self, method: str, path: str, *, n_bytes: int = 0, **arguments: Any) -> Any: ...
    def attempt(self, what: str, method: str, path: str, *, n_bytes: int = 0, **arguments: Any) -> Any: ...
    def write(self, path: str, raw: bytes) -> None: ...
    def size(self, path: str) -> int: ...


class PartWriter:
    """A multipart upload: parts are sent while more is written, a few at a time, with memory for those only.

    A file that fits one part is put as one object.
    """

    def __init__(self, store: Requests, path: str, *, part_bytes: int) -> None:
        self._store = store
        self._path = path
        self._part_bytes = part_bytes
        # The memory of parts is reused: fresh pages take longer than the copy, and delay the thread that trains.
        self._ring: list[io.BytesIO | None] = [None] * (PARTS_AT_ONCE + 1)
        self._part = self._empty_part(0)
        self._upload: str | None = None
        self._parts: list[Future[dict[str, Any]]] = []
        self._pool: ThreadPoolExecutor | None = None
        self._size = 0

    def write(self, raw: bytes | memoryview) -> None:
        view = memoryview(raw)
        while len(view):
            free = self._part_bytes - self._part.tell()
            self._part.write(view[:free])
            view = view[free:]
            if self._part.tell() == self._part_bytes:
                self._send()

    def _empty_part(self, index: int) -> io.BytesIO:
        """Takes the memory of the part PARTS_AT_ONCE + 1 before it, which `_send` has waited for."""
        part = self._ring[index % len(self._ring)] = self._ring[index % len(self._ring)] or io.BytesIO()
        part.seek(0)
        return part

    def _send(self) -> None:
        if self._pool is None:
            self._upload = self._store.attempt("begin to write", "create_multipart_upload", self._path)["UploadId"]
            self._pool = ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="upload", initializer=step_back)
        self._part.truncate()  # the last one is shorter
        self._size += self._part.tell()
        if len(self._parts) >= PARTS_AT_ONCE:
            self._parts[-PARTS_AT_ONCE].result()  # waits for a free place; raises the error of that part
        context = contextvars.copy_context()  # holds the retry budget of the caller
        self._parts.append(self._pool.submit(context.run, self._send_part, len(self._parts), self._part))
        self._part = self._empty_part(len(self._parts))

    def _send_part(self, index: int, body: io.BytesIO) -> dict[str, Any]:
        size = body.tell()

        def put() -> Any:
            nonlocal body
            if self._ring[index % len(self._ring)] is not body:
                body = io.BytesIO(body.getvalue())  # the try before may still read from the other
            self._ring[index % len(self._ring)] = None  # until this try is known to be over
            body.seek(0)
            return self._store.call(
                "upload_part", self._path, n_bytes=size, UploadId=self._upload, PartNumber=index + 1, Body=body
            )

        answer = self._store.retry("write", self._path, put)
        self._ring[index % len(self._ring)] = body
        return {"PartNumber": index + 1, "ETag": answer["ETag"]}

    def close(self) -> None:
        if self._pool is None:
            self._store.write(self._path, self._part.getvalue())
            return
        if self._part.tell():
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
