"""The open stores of this process, one per protocol, and the interface of a store."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Protocol

from launchyard.storage.options import StoreOptions, Writer
from launchyard.storage.stores.fsspec import FsspecStore


class Store(Protocol):
    """All paths are whole URLs. Errors as in storage/files.py, once the retry budget is spent."""

    def exists(self, path: str) -> bool: ...
    def size(self, path: str) -> int: ...
    def age(self, path: str) -> float: ...
    def listdir(self, path: str) -> list[str]: ...
    def list_ages(self, path: str) -> dict[str, float | None]: ...
    def read(self, path: str, start: int, length: int | None) -> bytes: ...
    def read_into(self, path: str, start: int, *targets: memoryview) -> int: ...
    def write(self, path: str, raw: bytes) -> None: ...
    def create(self, path: str, raw: bytes) -> None: ...
    def remove(self, path: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def open_write(self, path: str, *, size: int | None) -> Writer: ...
    def sweep_uploads(self, folder: str) -> int: ...
    def probes(self, folder: str) -> dict[str, Callable[[], str]]: ...


_options = {"s3": StoreOptions()}
_stores: dict[str, Store] = {}
_inherited: list[dict[str, Store]] = []
_locks = {"stores": threading.Lock()}


def set_options(options: StoreOptions) -> None:
    """Sets the options of the stores that are opened from now on; open ones with other options are forgotten."""
    if options != _options["s3"]:
        _options["s3"] = options
        _stores.clear()


def store_for(path: str) -> Store:
    """Returns the store of a URL. Raises ValueError if its protocol is unknown or a package is missing."""
    protocol = path.partition("://")[0]
    _watch_forks()
    with _locks["stores"]:
        if protocol not in _stores:
            _stores[protocol] = _open(protocol)
        return _stores[protocol]


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_leave_to_parent)


def _leave_to_parent() -> None:
    """Lets a forked child, which has none of its parent's threads, open stores of its own.

    The parent's are kept and never closed: closing would take the parent's sockets out of the epoll that both share.
    """
    _inherited.append(dict(_stores))
    _stores.clear()
    _locks["stores"] = threading.Lock()  # a thread of the parent may hold the old one


def _open(protocol: str) -> Store:
    if protocol in ("s3", "s3a"):
        from launchyard.storage.stores.s3 import S3Store

        return S3Store(_options["s3"])
    return FsspecStore(protocol)
