"""Object stores behind one face: patience with what passes, clear words for what does not. See model/files.py.

S3 has a room of its own, model/s3.py; every other protocol goes through its fsspec filesystem here. What an error
means is said once a store (`judge`), what follows from it once for all (`insist`).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from model.files import StoreOptions, Writer

Verdict = Literal["missing", "taken", "passing", "refused", "final"]
Result = TypeVar("Result")

PATIENCE_SECONDS = 20.0
LONGEST_PAUSE_SECONDS = 5.0
SAY_SECONDS = 2.0
# A store that refuses before it ever gave anything is a mistake more often than a fault: a fifteenth of the patience.
FIRST_REFUSAL_SHARE = 1 / 15
# One call may take so long before it is given up and made again: a floor, and what a crawling connection would take.
CALL_SECONDS, SHORTEST_CALL_SECONDS = 30.0, 5.0
SLOWEST_BYTES_PER_SECOND = 256 << 10


_CREDENTIALS = {
    ("s3", "s3a"): " (AWS_* variables, profile)",
    ("gs", "gcs"): " (GOOGLE_APPLICATION_CREDENTIALS, gcloud auth application-default login)",
    ("az", "abfs", "abfss"): " (AZURE_STORAGE_* variables, az login)",
}


class StoreError(OSError):
    """A store did not do what was asked within the patience of the process. Worth another try later."""


class RefusedError(StoreError, PermissionError):
    """A store refuses: wrong or expired credentials, no right, no such bucket."""


@dataclass(frozen=True)
class Trouble:
    """One failed try, or (`over`) the end of a series of them. `seconds` since the first."""

    what: str
    path: str
    message: str
    seconds: float
    over: bool = False
    pause: float = 0.0


class Store(Protocol):
    """All paths are whole URLs. Errors as in model/files.py, after the patience."""

    def exists(self, path: str) -> bool: ...
    def size(self, path: str) -> int: ...
    def age(self, path: str) -> float: ...
    def listdir(self, path: str) -> list[str]: ...
    def read(self, path: str, start: int, length: int | None) -> bytes: ...
    def read_into(self, path: str, start: int, *targets: memoryview) -> int: ...
    def write(self, path: str, raw: bytes) -> None: ...
    def create(self, path: str, raw: bytes) -> None: ...
    def remove(self, path: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def open_write(self, path: str, *, size: int | None) -> Writer: ...
    def sweep_uploads(self, folder: str) -> int: ...


# -- what a process has chosen ---------------------------------------------------------------------------------------
patience_here: contextvars.ContextVar[float | None] = contextvars.ContextVar("patience", default=None)
_process = {"patience": PATIENCE_SECONDS}
_options = {"s3": StoreOptions()}
_stores: dict[str, Store] = {}
_inherited: list[dict[str, Store]] = []
_locks = {"stores": threading.Lock()}
_watchers: list[Callable[[Trouble], None]] = []


def set_patience(seconds: float) -> None:
    _process["patience"] = seconds


def patience() -> float:
    here = patience_here.get()
    return _process["patience"] if here is None else here


def set_options(options: StoreOptions) -> None:
    if options != _options["s3"]:
        _options["s3"] = options
        _stores.clear()


def watch(callback: Callable[[Trouble], None]) -> None:
    """Hear of every failed try from now on, in whatever thread it happens."""
    _watchers.append(callback)


def store_for(path: str) -> Store:
    """The store of a URL; ValueError if its protocol is unknown or what it needs is not installed."""
    protocol = path.partition("://")[0]
    _mind_forks()
    with _locks["stores"]:
        if protocol not in _stores:
            _stores[protocol] = _open(protocol)
        return _stores[protocol]


@functools.cache
def _mind_forks() -> None:
    os.register_at_fork(after_in_child=_leave_to_parent)


def _leave_to_parent() -> None:
    """A forked child has none of its parent's threads, so it opens stores of its own.

    The parent's are kept and never closed: closing would take the parent's sockets out of the epoll that both share.
    """
    _inherited.append(dict(_stores))
    _stores.clear()
    _locks["stores"] = threading.Lock()  # a thread of the parent may have held the other


def _open(protocol: str) -> Store:
    if protocol in ("s3", "s3a"):
        from model.s3 import S3Store

        return S3Store(_options["s3"])
    return FsspecStore(protocol)


# -- patience --------------------------------------------------------------------------------------------------------
class Insistence:
    """Makes calls of one store until they succeed, or the patience is over."""

    def __init__(
        self,
        judge: Callable[[BaseException], Verdict],
        renew: Callable[[], None] = lambda: None,
        describe: Callable[[BaseException], str] = str,
    ) -> None:
        self._judge, self._renew, self._describe = judge, renew, describe
        self._answered: set[str] = set()  # buckets that have given or taken something

    def insist(self, what: str, path: str, action: Callable[[], Result]) -> Result:
        """`action`'s value. FileNotFoundError, FileExistsError, StoreError, or what only a change can mend."""
        began, tries, bucket = time.monotonic(), 0, path.split("/", 3)[2]
        while True:
            try:
                result = action()
            except Exception as error:
                verdict, said = self._judge(error), in_a_line(self._describe(error) or type(error).__name__)
                if verdict == "missing":
                    raise FileNotFoundError(2, "No such file", path) from error
                if verdict == "taken":
                    raise FileExistsError(17, "File exists", path) from error
                if verdict == "final":
                    if isinstance(error, OSError):
                        raise StoreError(f"{path}: could not {what}: {said}") from error
                    raise
                seconds, pause = time.monotonic() - began, _pause(tries)
                share = FIRST_REFUSAL_SHARE if verdict == "refused" and bucket not in self._answered else 1.0
                if seconds + pause > patience() * share:  # asked anew: it may have been shortened meanwhile
                    raise give_up(what, path, said, seconds, verdict) from error
                _tell(Trouble(what, path, said, seconds, pause=pause))
                if verdict == "refused":
                    self._renew()  # the credentials may have been renewed where they come from
                time.sleep(pause)
                tries += 1
            else:
                self._answered.add(bucket)
                if tries:
                    _tell(Trouble(what, path, "", time.monotonic() - began, over=True))
                return result


def _pause(tries: int) -> float:
    return float(min(LONGEST_PAUSE_SECONDS, 0.2 * 2**tries) * random.uniform(0.75, 1.25))


def _tell(trouble: Trouble) -> None:
    for callback in list(_watchers) or [_say]:
        callback(trouble)


def _say(trouble: Trouble) -> None:
    """To whoever waits for a command that nobody else tells anything."""
    if not trouble.over and trouble.seconds >= SAY_SECONDS > trouble.seconds - trouble.pause:
        said = f"{trouble.path}: cannot {trouble.what}: {trouble.message}; still trying"
        print(said, file=sys.stderr, flush=True)


def give_up(what: str, path: str, why: str, seconds: float, verdict: Verdict) -> StoreError:
    said = f"{path}: could not {what}: {why}"
    if verdict == "refused":
        protocol = path.partition("://")[0]
        where = next((words for names, words in _CREDENTIALS.items() if protocol in names), "")
        return RefusedError(f"{said}. Check the credentials{where}, their rights and the bucket's name")
    tried = f" (tried for {seconds:.0f} s)" if seconds >= 1 else ""
    return StoreError(
        f"{said}{tried}. Is the store up, and its endpoint right? Once it answers, the same can be done again"
    )


def in_a_line(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= 300 else f"{text[:300]} …"


def deadline(n_bytes: int) -> float:
    """Seconds that one call may take which moves so many bytes: longer than most take, not than who asks will wait."""
    most = max(SHORTEST_CALL_SECONDS, patience()) if patience() else CALL_SECONDS
    return min(CALL_SECONDS, most) + n_bytes / SLOWEST_BYTES_PER_SECOND


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
        return str(self._fs._strip_protocol(path))

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


def of_status(status: int) -> Verdict:
    """What an HTTP status means that nothing more is known of."""
    if status in (401, 403):
        return "refused"
    if status == 404:
        return "missing"
    if status in (409, 412):
        return "taken"
    return "passing" if status >= 500 or status in (408, 425, 429) else "final"
