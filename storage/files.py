"""Files by path or URL, here or in an object store: read, written as a whole, created once, listed, removed.

Every call to a store tries again what may pass until its patience is over; see storage/stores/fsspec.py for what that
is and for all that differs between stores. Knows nothing of what the files hold. Light: fsspec comes in with the
first URL.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from launchyard.storage.stores.registry import Store
from launchyard.storage.options import StoreOptions, Writer


def set_store_options(options: StoreOptions) -> None:
    """For all stores that this process opens from now on."""
    from launchyard.storage.stores import registry

    registry.set_options(options)


def set_patience(seconds: float) -> None:
    """How long calls of this process try again before they give up; 20 s by default, as suits a command."""
    from launchyard.storage import retry

    retry.set_patience(seconds)


def current_patience() -> float:
    """Seconds that a call made here and now would keep trying."""
    from launchyard.storage import retry

    return retry.patience()


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Another patience for the calls inside; 0: one try."""
    from launchyard.storage import retry

    token = retry.patience_here.set(seconds)
    try:
        yield
    finally:
        retry.patience_here.reset(token)


# -- names -----------------------------------------------------------------------------------------------------------
def is_remote(path: str) -> bool:
    return "://" in path and not path.startswith("file://")


def normal(path: str) -> str:
    """The same place in one spelling: no file://, no slash at the end."""
    return path.removeprefix("file://").rstrip("/") or "/"


def _store(path: str) -> Store:
    from launchyard.storage.stores.registry import store_for

    return store_for(path)


# -- reading ---------------------------------------------------------------------------------------------------------
def exists(path: str) -> bool:
    """Whether a file is there, or a folder with something in it."""
    return _store(path).exists(path) if is_remote(path) else os.path.exists(normal(path))


def size(path: str) -> int:
    """Bytes. FileNotFoundError without the file."""
    return _store(path).size(path) if is_remote(path) else os.path.getsize(normal(path))


def listdir(path: str) -> list[str]:
    """Sorted names inside a folder; none if there is no such folder."""
    if is_remote(path):
        return _store(path).listdir(path)
    try:
        return sorted(os.listdir(normal(path)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read(path: str, start: int = 0, length: int | None = None) -> bytes:
    """Bytes of a file; fewer than `length` if the file is shorter. FileNotFoundError without it."""
    if is_remote(path):
        return _store(path).read(path, start, length)
    with open(normal(path), "rb") as file:
        file.seek(start)
        return file.read() if length is None else file.read(length)


def read_into(path: str, start: int, *targets: memoryview) -> int:
    """Fill `targets`, one after the other, from byte `start` on, in one request; how many bytes there were.

    FileNotFoundError without the file.
    """
    if is_remote(path):
        return _store(path).read_into(path, start, *targets)
    count = 0
    with open(normal(path), "rb", buffering=0) as file:
        file.seek(start)
        for target in targets:
            at = 0
            while at < len(target):
                got = file.readinto(target[at:])
                if not got:
                    return count
                at += got
                count += got
    return count


def age(path: str) -> float:
    """Seconds since a file was written, both ends by the clock of where it lies. FileNotFoundError without it."""
    if is_remote(path):
        return _store(path).age(path)
    written = os.stat(normal(path)).st_mtime
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(normal(path))) as probe:  # on NFS: the server's clock
            return os.fstat(probe.fileno()).st_mtime - written
    except OSError:  # a folder that we may only read
        return time.time() - written


# -- writing ---------------------------------------------------------------------------------------------------------
def write(path: str, raw: bytes, *, sync: bool = False) -> None:
    """Write or replace a whole file: a reader sees the old bytes or the new. `sync`: it survives a power cut."""
    if is_remote(path):
        return _store(path).write(path, raw)
    with _temporary(path) as temporary:
        _write_local(temporary, raw, sync=sync)
        os.replace(temporary, normal(path))
    if sync:
        _sync_folder(os.path.dirname(normal(path)))
    return None


def create(path: str, raw: bytes) -> None:
    """Write a file that must not exist yet; FileExistsError if another was faster."""
    if is_remote(path):
        return _store(path).create(path, raw)
    with _temporary(path) as temporary:
        _write_local(temporary, raw, sync=True)
        os.link(temporary, normal(path))  # fails if the name is taken, and never shows half a file
    _sync_folder(os.path.dirname(normal(path)))
    return None


def remove(path: str) -> None:
    """Remove one file; nothing happens if it is gone already."""
    if is_remote(path):
        return _store(path).remove(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(normal(path))
    return None


def rename(old: str, new: str) -> None:
    """Give a file another name; what has that name is replaced. On a store: a copy that the store makes."""
    if is_remote(old):
        return _store(old).rename(old, new)
    os.replace(normal(old), normal(new))
    return None


def remove_folder(path: str) -> None:
    """Remove a folder with all that is in it, and what uploads that were cut short have left there."""
    for name in listdir(path):
        inner = f"{path}/{name}"
        if is_remote(path) or not os.path.isdir(normal(inner)):
            remove(inner)
        if listdir(inner):
            remove_folder(inner)
    if is_remote(path):
        _store(path).sweep_uploads(path)
        return
    with contextlib.suppress(OSError):
        os.rmdir(normal(path))


def open_write(path: str, *, size: int | None = None) -> Writer:
    """Write a large file bit by bit; on a store in parts, several at once. `size` in bytes if it is known.

    Local: the bytes are on the disk when `close` returns, but the name is there from the first one on.
    """
    if is_remote(path):
        return _store(path).open_write(path, size=size)
    os.makedirs(os.path.dirname(normal(path)) or ".", exist_ok=True)
    return LocalWriter(normal(path))


class LocalWriter:
    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[bytes] = open(path, "wb", buffering=0)  # noqa: SIM115

    def write(self, raw: bytes | memoryview) -> None:
        view = memoryview(raw)
        while len(view):
            view = view[self._file.write(view) :]

    def close(self) -> None:
        """Down to the disk, so that whoever names it next does not outlive it."""
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def sweep_uploads(folder: str) -> int:
    """End the uploads into a folder that were cut short; how many. Only where nobody writes."""
    return _store(folder).sweep_uploads(folder) if is_remote(folder) else 0


@contextlib.contextmanager
def _temporary(path: str) -> Iterator[str]:
    """A name beside a path for its bytes until they are complete; nothing of it stays."""
    path = normal(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _write_local(path: str, raw: bytes, *, sync: bool) -> None:
    with open(path, "wb") as file:
        file.write(raw)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def _sync_folder(path: str) -> None:
    handle = os.open(path or ".", os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
