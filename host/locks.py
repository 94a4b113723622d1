"""Locks between processes of this machine: flock on a file. A lock ends with its process, however that ends.

Several descriptors of one file exclude each other, also inside one process. Knows nothing of the files' content.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator


class LockedError(BlockingIOError):
    """Another process holds the lock of a file."""


@contextlib.contextmanager
def exclusive(path: str | os.PathLike[str], *, wait: bool = True, mode: int = 0o666) -> Iterator[None]:
    """Holds the lock of a file alone, and makes the file and its folder.

    Waits for other holders, or raises LockedError without `wait`. Raises OSError where the file system has no locks.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, mode)
    try:
        _flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), os.fspath(path))
        yield
    finally:
        os.close(file)


def open_shared(path: str) -> int:
    """Opens a file under a shared lock, which excludes an exclusive one; without a lock where there are none."""
    file = os.open(path, os.O_RDONLY)
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return file


def lock_shared(file: int) -> None:
    """Takes a shared lock of an open file, after waiting for an exclusive holder."""
    _flock(file, fcntl.LOCK_SH)


def try_lock(file: int) -> bool:
    """Takes the exclusive lock of an open file if it is free."""
    try:
        _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except LockedError:
        return False
    return True


def unlock(file: int) -> None:
    """Releases the lock of an open file, also where a mapping keeps the file open."""
    fcntl.flock(file, fcntl.LOCK_UN)


def is_file(path: str, file: int) -> bool:
    """Returns True while a path is that of an open file: a lock that was waited for may be that of a removed file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _flock(file: int, operation: int, path: str | None = None) -> None:
    try:
        fcntl.flock(file, operation)
    except BlockingIOError as error:
        raise LockedError(error.errno, "another process holds the lock", path) from None
    except OSError as error:
        raise OSError(
            error.errno, f"cannot be locked ({error.strerror}); choose a folder on a file system with flock", path
        ) from error
