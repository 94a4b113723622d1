"""A model or a set of data of the hub onto this machine: into the hub's cache, or into a plain folder.

A file gets its name once all of it is there and has the hash that the hub gives. Until then it lies beside it as
*.incomplete, and the next download goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from launchyard.errors import LaunchError, UserError
from launchyard.host.locks import exclusive
from launchyard.launcher.backends.hardware import free_bytes
from launchyard.launcher.format import size
from launchyard.launcher.hub.client import HubClient, HubFile, HubModel
from launchyard.launcher.hub.selection import Choice, choose, keep_to_limits
from launchyard.storage import files
from launchyard.storage.hub_cache import hub_cache, repo_folder

FILES_AT_ONCE = 4
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class DownloadProgress:
    """Bytes of all files that were missing. `fetched` of them came in `seconds`; the rest of `done` lay there."""

    path: str
    done: int
    total: int
    fetched: int
    seconds: float


class Destination(Protocol):
    """Where files go. `folder` is the one that a reader opens."""

    folder: str

    def content(self, file: HubFile) -> str: ...

    def whole(self, file: HubFile) -> bool:
        """Is the file there, and all of it?"""

    def lock(self, file: HubFile) -> str: ...

    def publish(self, file: HubFile) -> None:
        """Makes a whole file seen in the folder."""


class CacheDestination:
    """The hub's cache: blobs by their hash, and links to them."""

    def __init__(self, model: HubModel) -> None:
        self._root = repo_folder(model.repo, model.kind)
        self.folder = os.path.join(self._root, "snapshots", model.commit)

    def content(self, file: HubFile) -> str:
        return os.path.join(self._root, "blobs", file.etag)

    def whole(self, file: HubFile) -> bool:
        return any(_has_size(path, file.size) for path in (self.content(file), self._link(file)))

    def lock(self, file: HubFile) -> str:
        return os.path.join(hub_cache(), ".locks", os.path.basename(self._root), f"{file.etag}.lock")

    def publish(self, file: HubFile) -> None:
        link = self._link(file)
        if _has_size(link, file.size):
            return
        os.makedirs(os.path.dirname(link), exist_ok=True)
        made = f"{link}.{os.getpid()}.new"
        os.symlink(os.path.relpath(self.content(file), os.path.dirname(link)), made)
        os.replace(made, link)

    def name_revision(self, revision: str, commit: str) -> None:
        """Lets the revision mean this commit; the last step, so that a name never means half a download."""
        if revision != commit:
            files.write(os.path.join(self._root, "refs", revision), commit.encode())

    def _link(self, file: HubFile) -> str:
        return os.path.join(self.folder, file.path)


class FolderDestination:
    """A plain folder. Files of it that are not those of the hub are replaced."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(folder)

    def content(self, file: HubFile) -> str:
        return os.path.join(self.folder, file.path)

    def whole(self, file: HubFile) -> bool:
        path = self.content(file)
        return _has_size(path, file.size) and hash_of(file, path).hexdigest() == file.etag

    def lock(self, file: HubFile) -> str:
        return os.path.join(self.folder, ".cache", "locks", f"{file.etag}.lock")

    def publish(self, file: HubFile) -> None:
        """Nothing: the content has its name already."""


@dataclass(frozen=True)
class Download:
    """What is to be done. `missing` are those of `chosen` that are not there."""

    model: HubModel
    revision: str
    destination: CacheDestination | FolderDestination
    chosen: tuple[HubFile, ...]
    missing: tuple[HubFile, ...]

    def left(self) -> int:
        """Bytes to fetch."""
        return sum(file.size - self._partial_bytes(file) for file in self.missing)

    def _partial_bytes(self, file: HubFile) -> int:
        try:
            found = os.path.getsize(partial_of(self.destination, file))
        except OSError:
            return 0
        return found if found <= file.size else 0


def plan_download(client: HubClient, repo: str, *, revision: str, choice: Choice, out: str | None) -> Download:
    """Asks the hub which files there are, and looks which are here. Writes nothing."""
    model = client.model(repo, revision)
    by_path = {file.path: file for file in model.files}
    wanted = choose(list(by_path), choice, repo=repo)
    if choice.max_files is not None or choice.max_bytes is not None:
        wanted = keep_to_limits({path: by_path[path].size for path in wanted}, choice, repo=repo)
    chosen = tuple(_checked(by_path[path], repo) for path in wanted)
    destination = CacheDestination(model) if out is None else FolderDestination(out)
    missing = tuple(file for file in chosen if not destination.whole(file))
    return Download(model, revision, destination, chosen, missing)


def perform(
    client: HubClient, download: Download, *, on_progress: Callable[[DownloadProgress], None] = lambda _: None
) -> None:
    """Fetches what is missing. UserError without room for it; LaunchError for bytes that are not those of the hub."""
    where = download.destination
    free = free_bytes(where.folder)
    left = download.left()
    if free is not None and free < left:
        raise UserError(
            f"{where.folder}: {size(left)} are to come, and {size(free)} are free there",
            hint="make room, name another folder with --out, or move the cache with HF_HOME",
        )
    counter = _Counter(sum(file.size for file in download.missing), on_progress)
    try:
        _at_once([partial(_bring, client, download, file, counter) for file in download.missing])
    except BaseException:
        counter.stop()
        raise
    for file in download.chosen:
        where.publish(file)
    if isinstance(where, CacheDestination):
        where.name_revision(download.revision, download.model.commit)
    else:
        _remove_locks(where.folder)


def partial_of(destination: Destination, file: HubFile) -> str:
    return f"{destination.content(file)}.incomplete"


def hash_of(file: HubFile, path: str | None = None) -> hashlib._Hash:
    """The hash that the hub names a file by, of the bytes in `path`: SHA-256, or git's of a blob."""
    if len(file.etag) == 64:
        found = hashlib.sha256()
    else:
        found = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    if path is not None:
        with open(path, "rb") as stream:
            while piece := stream.read(1 << 20):
                found.update(piece)
    return found


# -- one file --------------------------------------------------------------------------------------------------------
class _StoppedError(Exception):
    """Another file failed, or the user has ended it all."""


class _Counter:
    """Bytes so far, over all files; called from the thread of each."""

    def __init__(self, total: int, report: Callable[[DownloadProgress], None]) -> None:
        self._total = total
        self._report = report
        self._places: dict[str, int] = {}  # bytes of each file that are there
        self._fetched = 0
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._stopped = False

    def add(self, file: HubFile, at: int, fetched: int) -> None:
        with self._lock:
            if self._stopped:
                raise _StoppedError(file.path)
            self._fetched += fetched
            self._places[file.path] = at
            seconds = time.monotonic() - self._began
            done = sum(self._places.values())
            self._report(DownloadProgress(file.path, done, self._total, self._fetched, seconds))

    def stop(self) -> None:
        with self._lock:
            self._stopped = True


def _at_once(tasks: Sequence[Callable[[], None]]) -> None:
    """Does them in a few threads, and raises the first error. Ctrl-C waits for none: one may wait for the network."""
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                task = waiting.get_nowait()
                try:
                    task()
                except BaseException as error:  # raised again below
                    ended.put(error)
                else:
                    ended.put(None)

    for _ in range(min(FILES_AT_ONCE, len(tasks))):
        threading.Thread(target=work, daemon=True).start()
    for _ in tasks:
        error = ended.get()
        if error is not None:
            raise error


def _bring(client: HubClient, download: Download, file: HubFile, counter: _Counter) -> None:
    where = download.destination
    with exclusive(where.lock(file)):
        if not where.whole(file):  # another process may have fetched it while this one waited
            _fetch(client, download.model, file, where, counter)
        counter.add(file, file.size, 0)


def _fetch(client: HubClient, model: HubModel, file: HubFile, where: Destination, counter: _Counter) -> None:
    unfinished = partial_of(where, file)
    os.makedirs(os.path.dirname(unfinished), exist_ok=True)
    resumed = _has_bytes(unfinished, file.size)
    if not _bytes_match(client, model, file, unfinished, counter) and not (
        resumed
        and _bytes_match(client, model, file, unfinished, counter)  # what lay there may have been of another file
    ):
        kind = "SHA-256" if len(file.etag) == 64 else "git hash"
        raise LaunchError(
            f"{model.repo}/{file.path}: what came is not the file of the hub: another {kind} than {file.etag}. "
            "It was removed",
            hint=f"try again; is {client.endpoint} a mirror that is up to date, or a proxy that changes files?",
        )
    os.replace(unfinished, where.content(file))


def _bytes_match(client: HubClient, model: HubModel, file: HubFile, unfinished: str, counter: _Counter) -> bool:
    """Fetches what a partial file lacks. Returns False, without the file, if the whole has another hash."""
    start = os.path.getsize(unfinished) if _has_bytes(unfinished, file.size) else 0
    found = hash_of(file, unfinished if start else None)
    with open(unfinished, "r+b" if start else "wb") as stream:
        stream.seek(start)
        for at, piece in client.fetch(model, file, start):
            if at == 0 and stream.tell():  # the server has begun anew
                stream.seek(0)
                stream.truncate()
                found = hash_of(file)
            stream.write(piece)
            found.update(piece)
            counter.add(file, stream.tell(), len(piece))
            if stream.tell() > file.size:
                break
        stream.flush()
        os.fsync(stream.fileno())
    if found.hexdigest() == file.etag:
        return True
    os.unlink(unfinished)
    return False


def _has_bytes(path: str, most: int) -> bool:
    return os.path.exists(path) and 0 < os.path.getsize(path) <= most


def _has_size(path: str, expected: int) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) == expected


def _checked(file: HubFile, repo: str) -> HubFile:
    """Paths and hashes become names of files here: a hub must not choose others."""
    parts = file.path.split("/")
    if not _ETAG.fullmatch(file.etag) or any(part in ("", ".", "..") for part in parts) or "\\" in file.path:
        raise LaunchError(f"{repo}: {file.path!r} with hash {file.etag!r} is no file of a hub")
    return file


def _remove_locks(folder: str) -> None:
    locks = os.path.join(folder, ".cache", "locks")
    with contextlib.suppress(OSError):  # another download may use them
        for name in os.listdir(locks):
            os.unlink(os.path.join(locks, name))
        os.removedirs(locks)
