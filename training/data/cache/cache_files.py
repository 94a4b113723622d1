"""The files of the cache of chunks: locks, quota, sweeping, listing and removal.

    FOLDER/lock                  held while space is reserved
    FOLDER/account               bytes of all chunks and parts, at most, and how much of `queue` has been read
    FOLDER/queue                 chunks in the order of their last use, as a scan has found them
    FOLDER/<source>/source       the URL of a folder of chunks; every reader holds a shared lock
    FOLDER/<source>/<key>.part   a chunk being fetched; the process that fetches it holds the lock
    FOLDER/<source>/<key>.bin    a complete chunk; its mtime is the time of its last use

Locks are those of host/locks.py. Light; knows nothing of the content of a chunk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from launchyard.host.folders import user_cache_folder
from launchyard.host.locks import exclusive, is_file, lock_shared, try_lock, unlock

SOURCE = "source"
ACCOUNT = "account"
QUEUE = "queue"
DEFAULT_SHARE = 4  # the quota is a quarter of the free space, unless it is set
STALLED_SECONDS = 60.0  # without a sign of life from the process that fetches a chunk
POLL_SECONDS = 0.005


class FullError(OSError):
    """The disk has no room, and nothing of ours that could make some."""


class QuotaError(Exception):
    """The quota is taken by chunks that are about to be read; a fetch that is not urgent has to wait."""


class StalledError(Exception):
    """The holder of the lock of a chunk shows no sign of life."""


@dataclass(frozen=True)
class CachedFile:
    """One file of the cache."""

    path: str
    size: int
    used: float  # Unix time
    complete: bool


@dataclass(frozen=True)
class CachedSource:
    """The cached chunks of one folder of a store."""

    url: str
    chunks: int
    bytes: int
    used: float | None  # Unix time
    in_use: bool


def default_folder() -> str:
    return os.fspath(user_cache_folder("chunks"))


def default_quota(folder: str) -> int:
    """Bytes: a quarter of the free space on the disk of a folder, its present content counted as free."""
    cached_bytes = sum(cached.size for cached in scan(folder))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or "."
    return (shutil.disk_usage(folder).free + cached_bytes) // DEFAULT_SHARE


# -- locks -----------------------------------------------------------------------------------------------------------
def enter_source(folder: str, url: str) -> tuple[str, int]:
    """The folder of a source, and a file to keep open while it is used. Made if it is not there."""
    source_folder = os.path.join(folder, hashlib.sha256(url.encode()).hexdigest()[:16])
    name = os.path.join(source_folder, SOURCE)
    while True:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        os.makedirs(source_folder, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # cleared in between
            file = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
            lock_shared(file)
            if is_file(name, file):
                if os.fstat(file).st_size != len(url.encode()):
                    os.pwrite(file, url.encode(), 0)
                return source_folder, file
            os.close(file)


def lock_part(part: str, beat: Callable[[], None]) -> tuple[int, bool]:
    """Opens a .part after its holder let go. Returns the file, and True if it is still the one to fill, and locked.

    `beat` is called while waiting and may raise. StalledError if the holder shows no sign of life.
    """
    file = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        last_change = 0.0
        since = time.monotonic()
        while not try_lock(file):
            beat()
            changed = os.fstat(file).st_mtime
            if changed != last_change:
                last_change = changed
                since = time.monotonic()
            if time.monotonic() - since > STALLED_SECONDS:
                raise StalledError(part)
            time.sleep(POLL_SECONDS)
        mine = is_file(part, file)
        if not mine:
            unlock(file)  # others wait for it too, and a mapping would keep it
        return file, mine
    except BaseException:
        os.close(file)
        raise


# -- quota -----------------------------------------------------------------------------------------------------------
def scan(folder: str) -> list[CachedFile]:
    """All chunks and parts in a cache."""
    found = []
    for source in _entries(folder):
        if source.is_dir(follow_symlinks=False):
            for entry in _entries(source.path):
                if entry.name.endswith((".bin", ".part")):
                    with contextlib.suppress(FileNotFoundError):
                        facts = entry.stat(follow_symlinks=False)
                        complete_file = entry.name.endswith(".bin")
                        found.append(CachedFile(entry.path, facts.st_size, facts.st_mtime, complete_file))
    return found


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def reserve(
    folder: str,
    file: int,
    size: int,
    *,
    quota: int,
    keep: Collection[str],
    urgent: bool,
    more: bool = False,
    recount: bool = False,
) -> tuple[int, int]:
    """Let a locked .part have `size` bytes, after evicting the least recently used chunks.

    Returns the number of bytes evicted, and of bytes that the cache holds now, at most.

    Paths in `keep` go last, and only for an urgent fetch; QuotaError if it is not. FullError if the disk has no room
    even so. `more`: evict at least one chunk, regardless of disk and quota. `recount`: scan the cache in any case, and
    sweep it. Else it is scanned only where more has to go than the last scan has found, so its cost does not grow.
    """
    with exclusive(os.path.join(folder, "lock"), mode=0o600):
        room = _Room(folder, file, size, quota=quota, more=more)
        room.evict(_queued(folder, room.account, keep) if room.account and not recount else ())
        if recount or room.wanting:
            room.recount(keep, urgent=urgent)
        if room.lacks_disk:
            raise FullError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)
        if room.over_quota and not urgent:
            raise QuotaError
        held = room.settle()
        os.ftruncate(file, size)  # the size that a scan counts from now on
        return room.freed, held


@dataclass
class _Account:
    """`bytes`: of all chunks and parts, never less than there are: what goes without a word makes it too large, and
    the next scan right. `read`: bytes of the queue."""

    bytes: int
    read: int

    @classmethod
    def of(cls, folder: str) -> _Account | None:
        try:
            with open(os.path.join(folder, ACCOUNT), "rb") as file:
                n_bytes, read = map(int, file.read().split())
            return cls(n_bytes, read)
        except (FileNotFoundError, ValueError):
            return None

    def write(self, folder: str) -> None:
        _note(os.path.join(folder, ACCOUNT), [f"{self.bytes} {self.read}\n"])


class _Room:
    """The making of room for one .part, under the lock of the cache."""

    def __init__(self, folder: str, file: int, size: int, *, quota: int, more: bool) -> None:
        self._folder = folder
        self._file = file
        self._size = size
        self._quota = quota
        self._more = more
        facts = os.fstat(file)
        self._free = shutil.disk_usage(folder).free
        self._missing = size - 512 * facts.st_blocks  # of its final size on the disk
        self.account = _Account.of(folder)
        self._others = max(0, self.account.bytes - facts.st_size) if self.account else 0
        self.freed = 0

    @property
    def over_quota(self) -> bool:
        return self._others + self._size - self.freed > self._quota

    @property
    def lacks_disk(self) -> bool:
        return self._free + self.freed < self._missing or (self._more and not self.freed)

    @property
    def wanting(self) -> bool:
        return self.account is None or self.over_quota or self.lacks_disk

    def evict(self, victims: Iterable[tuple[str, int]]) -> None:
        """Until there is room, as far as there are any: (path, bytes)."""
        if self.account is None or not self.wanting:
            return
        for path, n_bytes in victims:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self.freed += n_bytes
            if not self.wanting:
                return

    def recount(self, keep: Collection[str], *, urgent: bool) -> None:
        """Looks at every file, sweeps, and evicts as far as need be."""
        others = [one for one in scan(self._folder) if not is_file(one.path, self._file) and not _sweep(one)]
        victims = sorted((one for one in others if one.complete), key=lambda one: (one.path in keep, one.used))
        lines = (f"{one.used!r} {os.path.relpath(one.path, self._folder)}\n" for one in victims)
        _note(os.path.join(self._folder, QUEUE), lines)
        self._free = shutil.disk_usage(self._folder).free
        self._others = sum(one.size for one in others) + self.freed
        self.account = _Account(0, 0)
        self.evict((one.path, one.size) for one in victims if urgent or one.path not in keep)

    def settle(self) -> int:
        """Writes down what the cache holds, before its file has its size; returns it."""
        assert self.account is not None
        self.account.bytes = self._others + self._size - self.freed
        self.account.write(self._folder)
        return self.account.bytes


def _queued(folder: str, account: _Account, keep: Collection[str]) -> Iterator[tuple[str, int]]:
    """Chunks that nobody has used since the last scan, the least recently used first, without those to keep."""
    with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, QUEUE), "rb") as queue:
        queue.seek(account.read)
        while (line := queue.readline()).endswith(b"\n"):
            account.read += len(line)
            used, _, name = line.decode().rstrip("\n").partition(" ")
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError, ValueError):
                facts = os.stat(path, follow_symlinks=False)
                if facts.st_mtime <= float(used) and path not in keep:
                    yield path, facts.st_size


def _note(path: str, lines: Iterable[str]) -> None:
    """Writes what spares a scan. A disk without room for it costs the scan and nothing else."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(lines)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)


def complete(folder: str, file: int, part: str, path: str) -> None:
    """Give a .part its name as a whole chunk, and release its lock. Alone, so that no scan misses it."""
    with exclusive(os.path.join(folder, "lock"), mode=0o600):
        os.rename(part, path)
    unlock(file)


def _sweep(cached: CachedFile) -> bool:
    """Remove a .part that no process holds."""
    if cached.complete:
        return False
    try:
        file = os.open(cached.path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        abandoned = try_lock(file) and is_file(cached.path, file)
        if abandoned:
            os.unlink(cached.path)
        return abandoned
    finally:
        os.close(file)


# -- for people ------------------------------------------------------------------------------------------------------
def sources(folder: str) -> list[CachedSource]:
    """Returns the content of a cache by source."""
    found = []
    for entry in _entries(folder):
        if not entry.is_dir(follow_symlinks=False):
            continue
        try:
            with open(os.path.join(entry.path, SOURCE)) as file:
                in_use = not try_lock(file.fileno())
                url = file.read()
        except FileNotFoundError:
            continue
        files = [cached for cached in scan(folder) if os.path.dirname(cached.path) == entry.path]
        used = max((cached.used for cached in files), default=None)
        found.append(CachedSource(url, sum(k.complete for k in files), sum(k.size for k in files), used, in_use))
    return sorted(found, key=lambda source: source.url)


def remove_unused(folder: str) -> tuple[int, list[str]]:
    """Remove all sources that no live process reads. Returns the bytes freed, and the URLs that stayed."""
    freed = 0
    stayed = []
    for entry in _entries(folder):
        if not entry.is_dir(follow_symlinks=False):
            continue
        name = os.path.join(entry.path, SOURCE)
        try:
            file = os.open(name, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            if try_lock(file):
                freed += sum(inner.stat().st_size for inner in _entries(entry.path) if inner.name != SOURCE)
                shutil.rmtree(entry.path)
            else:
                stayed.append(os.read(file, 4096).decode())
        finally:
            os.close(file)
    return freed, sorted(stayed)
