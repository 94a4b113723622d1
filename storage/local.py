"""Atomic writes to a local file system: a reader sees the old bytes or the new ones, never half a file.

The only such code of the product. Knows no URL; see storage/files.py for paths of either kind. A client of NFS repeats
a request whose answer was lost: a link that was made is then refused, and a file that has its new name is not found.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from typing import IO

from launchyard.host.disk import begin_writing, reserve_room, writing_to

_WRITE_BYTES = 16 << 20  # handed to the disk together, while the next ones are copied
_NO_LINKS = frozenset((errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP))  # FAT, exFAT and some of FUSE


def replace_file(path: str | os.PathLike[str], raw: bytes, *, sync: bool = False, mode: int = 0o666) -> None:
    """Writes or replaces a whole file, and makes its folder.

    `sync`: the file survives a power cut. `mode` as for open(2), before the umask; 0o600 is for its owner only.
    """
    with _temporary(path, raw, sync=sync, mode=mode) as temporary:
        try:
            os.replace(temporary, path)
        except FileNotFoundError:
            if not _holds(path, raw):
                raise
    if sync:
        _sync_folder(os.path.dirname(path))


def create_file(path: str | os.PathLike[str], raw: bytes) -> None:
    """Writes a file that must not exist yet, down to the disk.

    Raises FileExistsError if another was faster, and OSError where the file system has no hard links.
    """
    with _temporary(path, raw, sync=True, mode=0o666) as temporary:
        try:
            os.link(temporary, path)  # fails if the name is taken
        except FileExistsError:
            if not os.path.samefile(temporary, path):
                raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            why = f"cannot be created ({error.strerror}); choose a folder on a file system with hard links"
            raise OSError(error.errno, why, os.fspath(path)) from error
    _sync_folder(os.path.dirname(path))


class LocalWriter:
    """A file that grows; its name is visible from the first byte on. size: of the whole file, if known."""

    def __init__(self, path: str, *, size: int | None = None) -> None:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self._path = path
        self._file: IO[bytes] = open(path, "wb", buffering=0)  # noqa: SIM115
        self._begun = 0  # bytes that the disk has been told to write
        self._at = 0
        try:
            reserve_room(self._file.fileno(), size or 0)
        except OSError as error:
            self.discard()
            raise OSError(error.errno, error.strerror, path) from error

    def write(self, raw: bytes | memoryview) -> None:
        view = memoryview(raw)
        try:
            while len(view):
                count = self._file.write(view[:_WRITE_BYTES])
                view = view[count:]
                self._at += count
                if self._at - self._begun >= _WRITE_BYTES:
                    begin_writing(self._file.fileno(), self._begun, self._at - self._begun)
                    self._begun = self._at
        except OSError as error:  # a full disk, most often; the system does not say of which file
            raise OSError(error.errno, error.strerror, self._path) from error

    def close(self) -> None:
        """Syncs to the disk, so that no later file that names this one can outlive it."""
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


@contextlib.contextmanager
def _temporary(path: str | os.PathLike[str], raw: bytes, *, sync: bool, mode: int) -> Iterator[str]:
    """Holds the bytes in a file beside `path` until they have their name; nothing of it stays."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{os.fspath(path)}.{secrets.token_hex(4)}.tmp"
    try:
        with (
            writing_to(os.fspath(path)),
            open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file,
        ):
            file.write(raw)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _holds(path: str | os.PathLike[str], raw: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read() == raw
    except FileNotFoundError:
        return False


def _sync_folder(path: str) -> None:
    handle = os.open(path or ".", os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
