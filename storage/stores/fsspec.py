"""Stores reached through fsspec: Google Cloud Storage, Azure, memory and all others that it knows, except S3."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from launchyard.host.packages import install_command
from launchyard.storage.errors import DeniedError, StoreError
from launchyard.storage.options import Writer
from launchyard.storage.retry import ErrorKind, Retrier, classify_status


class FsspecStore:
    """The store of one of fsspec's protocols. Raises ValueError if fsspec does not know it or needs a package."""

    def __init__(self, protocol: str) -> None:
        import fsspec

        try:
            self._fs = fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)
        except ValueError as error:
            raise ValueError(f"{protocol}:// is no protocol that fsspec knows") from error
        except ImportError as error:
            extra = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure"}.get(protocol)
            install = install_command(extra) if extra else str(error)
            raise ValueError(f"{protocol}:// needs a package that is not installed: {install}") from error
        self._call = Retrier(classify_fsspec).call

    def _inner(self, path: str) -> str:
        from fsspec.core import strip_protocol

        return str(strip_protocol(path))

    def exists(self, path: str) -> bool:
        return bool(self._call("look up", path, lambda: self._fs.exists(self._inner(path))))

    def size(self, path: str) -> int:
        return int(self._call("look up", path, lambda: self._fs.size(self._inner(path))))

    def age(self, path: str) -> float:
        """Compares the times that the store gives to the file and to a probe written now."""
        probe = f"{path}.{secrets.token_hex(4)}.probe"
        written = self._call("look up", path, lambda: self._fs.modified(self._inner(path)))
        try:
            self.write(probe, b"")
            now = self._call("look up", probe, lambda: self._fs.modified(self._inner(probe)))
        finally:
            with contextlib.suppress(StoreError):  # no right to delete
                self.remove(probe)
        return float((now - written).total_seconds())

    def listdir(self, path: str) -> list[str]:
        try:
            found = self._call("list", path, lambda: self._fs.ls(self._inner(path), detail=False, refresh=True))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in found if name != self._inner(path)})

    def list_ages(self, path: str) -> dict[str, float | None]:
        """Without ages: a listing does not say what time it is there."""
        return dict.fromkeys(self.listdir(path))

    def read(self, path: str, start: int, length: int | None) -> bytes:
        end = None if length is None else start + length
        if end == start:  # a range that HTTP cannot name
            return b""

        def read_range() -> bytes:
            try:
                return bytes(self._fs.cat_file(self._inner(path), start=start, end=end))
            except Exception as error:
                if _status(error) == 416:  # the file ends before `start`
                    return b""
                raise

        return self._call("read", path, read_range)

    def read_into(self, path: str, start: int, *targets: memoryview) -> int:
        buffer = ScatterBuffer(targets)
        buffer.write(self.read(path, start, buffer.size))
        return buffer.count

    def write(self, path: str, raw: bytes) -> None:
        self._call("write", path, lambda: self._fs.pipe_file(self._inner(path), raw))

    def create(self, path: str, raw: bytes) -> None:
        try:
            self._call("create", path, lambda: self._fs.pipe_file(self._inner(path), raw, mode="create"))
        except FileExistsError:
            if self.read(path, 0, None) != raw:  # else it is ours: the answer to our first try was lost
                raise

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._call("remove", path, lambda: self._fs.rm_file(self._inner(path)))

    def rename(self, old: str, new: str) -> None:
        self._call("copy", old, lambda: self._fs.cp_file(self._inner(old), self._inner(new)))
        with contextlib.suppress(DeniedError):  # it costs room
            self.remove(old)

    def open_write(self, path: str, *, size: int | None) -> Writer:
        return FsspecWriter(self._call("write", path, lambda: self._fs.open(self._inner(path), "wb")))

    def sweep_uploads(self, folder: str) -> int:
        return 0  # these stores forget unfinished uploads by themselves

    def probes(self, folder: str) -> dict[str, Callable[[], str]]:
        return {}


class ScatterBuffer:
    """Memory in several places, filled from the front: `count` of its `size` bytes so far."""

    def __init__(self, targets: Sequence[memoryview]) -> None:
        self._unfilled = [target for target in reversed(targets) if len(target)]
        self.size = sum(map(len, targets))
        self.count = 0

    def write(self, raw: bytes) -> None:
        """Raises ValueError for more bytes than are left."""
        if self.count + len(raw) > self.size:
            raise ValueError(f"{self.count + len(raw)} bytes came where {self.size} were asked for")
        self.count += len(raw)
        view = memoryview(raw)
        while len(view):
            target = self._unfilled.pop()
            n = min(len(target), len(view))
            target[:n] = view[:n]
            view = view[n:]
            if n < len(target):
                self._unfilled.append(target[n:])


class FsspecWriter:
    """fsspec's own writer; the name appears when it is closed."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, raw: bytes | memoryview) -> None:
        self._file.write(raw)

    def close(self) -> None:
        self._file.close()

    def discard(self) -> None:
        with contextlib.suppress(Exception):
            self._file.discard()
        with contextlib.suppress(AttributeError):
            self._file.closed = True  # else it would be written when it is collected


def classify_fsspec(error: BaseException) -> ErrorKind:
    """Returns the kind of an error of an fsspec filesystem: by its type, else by the HTTP status that it carries."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, FileExistsError):
        return "taken"
    if isinstance(error, PermissionError):
        return "refused"
    if isinstance(error, (IsADirectoryError, NotADirectoryError)):
        return "final"
    if (status := _status(error)) is not None:
        # Azure: 403 is also its response to a key or token that is wrong or has expired.
        is_identity = status == 403 and "Authentication" in str(getattr(error, "error_code", ""))
        return "refused" if is_identity else classify_status(status)
    if type(error) is OSError and str(error).startswith("Forbidden:"):  # gcsfs' words for 403
        return "denied"
    return "transient" if isinstance(error, (OSError, TimeoutError)) else "final"


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status that an error carries, under one of the names that packages give it."""
    found = (getattr(error, key, None) for key in ("status_code", "status", "code"))
    return next((status for status in found if isinstance(status, int)), None)
