"""Stores reached through fsspec: Google Cloud Storage, Azure, memory and whatever else it knows."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from typing import Any

from launchyard.storage.options import Writer
from launchyard.storage.retry import Insistence, Verdict, of_status


# -- all but S3 ------------------------------------------------------------------------------------------------------
class FsspecStore:
    """Google Cloud Storage, Azure, memory and whatever else fsspec knows."""

    def __init__(self, protocol: str) -> None:
        import fsspec

        try:
            self._fs = fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)
        except ValueError as error:
            raise ValueError(f"{protocol}:// is no protocol that fsspec knows") from error
        except ImportError as error:
            extra = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure"}.get(protocol)
            install = f"'launchyard[{extra}]'" if extra else str(error)
            raise ValueError(f"{protocol}:// needs a package that is not installed: pip install {install}") from error
        self._insist = Insistence(judge).insist

    def _inner(self, path: str) -> str:
        from fsspec.core import strip_protocol

        return str(strip_protocol(path))

    def exists(self, path: str) -> bool:
        return bool(self._insist("look up", path, lambda: self._fs.exists(self._inner(path))))

    def size(self, path: str) -> int:
        return int(self._insist("look up", path, lambda: self._fs.size(self._inner(path))))

    def age(self, path: str) -> float:
        """By the times that the store gives to the file and to one written now."""
        probe = f"{path}.{secrets.token_hex(4)}.probe"
        written = self._insist("look up", path, lambda: self._fs.modified(self._inner(path)))
        try:
            self.write(probe, b"")
            now = self._insist("look up", probe, lambda: self._fs.modified(self._inner(probe)))
        finally:
            self.remove(probe)
        return float((now - written).total_seconds())

    def listdir(self, path: str) -> list[str]:
        try:
            found = self._insist("list", path, lambda: self._fs.ls(self._inner(path), detail=False, refresh=True))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in found if name != self._inner(path)})

    def read(self, path: str, start: int, length: int | None) -> bytes:
        end = None if length is None else start + length
        if end == start:  # a range that HTTP cannot name
            return b""

        def ask() -> bytes:
            try:
                return bytes(self._fs.cat_file(self._inner(path), start=start, end=end))
            except Exception as error:
                if _status(error) == 416:  # there is nothing from there on
                    return b""
                raise

        return self._insist("read", path, ask)

    def read_into(self, path: str, start: int, *targets: memoryview) -> int:
        filling = Filling(targets)
        filling.take(self.read(path, start, filling.room))
        return filling.count

    def write(self, path: str, raw: bytes) -> None:
        self._insist("write", path, lambda: self._fs.pipe_file(self._inner(path), raw))

    def create(self, path: str, raw: bytes) -> None:
        try:
            self._insist("create", path, lambda: self._fs.pipe_file(self._inner(path), raw, mode="create"))
        except FileExistsError:
            if self.read(path, 0, None) != raw:  # else it is ours, and the answer to our first try was lost
                raise

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._insist("remove", path, lambda: self._fs.rm_file(self._inner(path)))

    def rename(self, old: str, new: str) -> None:
        self._insist("copy", old, lambda: self._fs.cp_file(self._inner(old), self._inner(new)))
        self.remove(old)

    def open_write(self, path: str, *, size: int | None) -> Writer:
        return FsspecWriter(self._insist("write", path, lambda: self._fs.open(self._inner(path), "wb")))

    def sweep_uploads(self, folder: str) -> int:
        return 0  # these stores forget unfinished uploads by themselves


class Filling:
    """Memory in several places, filled from the front. `room` is all of it, `count` what is filled; in bytes."""

    def __init__(self, targets: Sequence[memoryview]) -> None:
        self._left = [target for target in reversed(targets) if len(target)]
        self.room, self.count = sum(map(len, targets)), 0

    def take(self, raw: bytes) -> None:
        """ValueError for more than there is room for."""
        if self.count + len(raw) > self.room:
            raise ValueError(f"{self.count + len(raw)} bytes came where {self.room} were asked for")
        self.count += len(raw)
        view = memoryview(raw)
        while len(view):
            target = self._left.pop()
            n = min(len(target), len(view))
            target[:n] = view[:n]
            view = view[n:]
            if n < len(target):
                self._left.append(target[n:])


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


def judge(error: BaseException) -> Verdict:
    """What an error of an fsspec filesystem means: by its type, else by the HTTP status that it carries."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, FileExistsError):
        return "taken"
    if isinstance(error, PermissionError):
        return "refused"
    if isinstance(error, (IsADirectoryError, NotADirectoryError)):
        return "final"
    if (status := _status(error)) is not None:
        return of_status(status)
    return "passing" if isinstance(error, (OSError, TimeoutError)) else "final"


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error carries, under one of the names that its package may give it."""
    found = (getattr(error, key, None) for key in ("status_code", "status", "code"))
    return next((status for status in found if isinstance(status, int)), None)
