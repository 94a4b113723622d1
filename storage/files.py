"""Files by path or URL, here or in an object store: read, replaced as a whole, created once, listed, removed.

Every call to a store is retried until the retry budget is spent; see storage/retry.py. Knows nothing of what the files
hold. Light: fsspec is imported with the first URL.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from launchyard.storage import local
from launchyard.storage.damage import JsonObject
from launchyard.storage.options import StoreOptions, Writer
from launchyard.storage.redact import redact

if TYPE_CHECKING:
    from launchyard.storage.stores.registry import Store


_VARIABLE = re.compile(r"\$(\{\w+\}|[A-Za-z_]\w*)")


def set_store_options(options: StoreOptions) -> None:
    """Sets the options of all stores that this process opens from now on."""
    from launchyard.storage.stores import registry

    registry.set_options(options)


# -- names -----------------------------------------------------------------------------------------------------------
def is_remote(path: str) -> bool:
    return "://" in path and not path.startswith("file://")


def normal(path: str) -> str:
    """Returns the same place in one spelling: no file://, no slash at the end."""
    return path.removeprefix("file://").rstrip("/") or "/"


def typed_path(path: str) -> str:
    """Returns the place that a person means by a path or URL: ~ and ~NAME are home folders, and no file:// is left.

    Raises ValueError for a home of nobody, and for a variable, unless a file has that very name: variables are not
    expanded.
    """
    if not is_remote(path):
        path = path.removeprefix("file://")
    if (variable := _VARIABLE.search(path.partition("?")[0])) and (is_remote(path) or not os.path.lexists(path)):
        raise ValueError(
            f"{path}: variables are not expanded, and {variable[0]} is one; write the place itself, ~ for your home, "
            "or on a command line leave out the single quotes around it"
        )
    if not path.startswith("~"):
        return path
    found = os.path.expanduser(path)
    if found == path and not os.path.lexists(path):
        raise ValueError(f"{path}: {path.partition('/')[0]} is the home of no user of this machine")
    return found


def _store(path: str) -> Store:
    from launchyard.storage.stores.registry import store_for

    return store_for(path)


# -- reading ---------------------------------------------------------------------------------------------------------
def exists(path: str) -> bool:
    """Returns True for a file, or for a folder with something in it."""
    return _store(path).exists(path) if is_remote(path) else os.path.exists(normal(path))


def size(path: str) -> int:
    """Returns the bytes of a file. Raises FileNotFoundError without it."""
    return _store(path).size(path) if is_remote(path) else os.path.getsize(normal(path))


def listdir(path: str) -> list[str]:
    """Returns the sorted names inside a folder; none if there is no such folder."""
    if is_remote(path):
        return _store(path).listdir(path)
    try:
        return sorted(os.listdir(normal(path)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def list_ages(path: str) -> dict[str, float | None]:
    """The names inside a folder with what `age` says of them, in one request.

    None where only `age` itself can say: of folders, on a disk, and in stores other than S3.
    """
    return _store(path).list_ages(path) if is_remote(path) else dict.fromkeys(listdir(path))


def read(path: str, start: int = 0, length: int | None = None) -> bytes:
    """Returns the content of a file from byte `start` on; fewer than `length` bytes if the file is shorter.

    Raises FileNotFoundError without the file.
    """
    if is_remote(path):
        return _store(path).read(path, start, length)
    with open(normal(path), "rb") as file:
        file.seek(start)
        return file.read() if length is None else file.read(length)


_BLOCK_BYTES = 1 << 20
_STORE_BLOCK_BYTES = 8 << 20  # a part of a log in a store is one request


def read_blocks(path: str, start: int = 0) -> Iterator[bytes]:
    """The content of a file from byte `start` on, block by block, so that no memory holds a long one.

    Raises FileNotFoundError without the file.
    """
    if not is_remote(path):
        with open(normal(path), "rb") as file:
            file.seek(start)
            while block := file.read(_BLOCK_BYTES):
                yield block
        return
    while True:
        block = read(path, start, _STORE_BLOCK_BYTES)
        yield block
        start += len(block)
        if len(block) < _STORE_BLOCK_BYTES:
            return


def read_text(path: str) -> str:
    """The content of a file in UTF-8, without a byte order mark. ValueError names a file that is none, and the line."""
    raw = read(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b"\n", 0, error.start)
        raise ValueError(f"{redact(path)}:{line} is not UTF-8") from error


def read_json(path: str) -> JsonObject:
    """ValueError names a file that holds no JSON object."""
    try:
        value = json.loads(read(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def read_into(path: str, start: int, *targets: memoryview) -> int:
    """Fills `targets`, one after the other, from byte `start` on, in one request; returns the number of bytes.

    Raises FileNotFoundError without the file.
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
    """Returns the seconds since a file was written, both ends by the clock of the place where it lies.

    Raises FileNotFoundError without the file.
    """
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
    """Writes or replaces a whole file: a reader sees the old bytes or the new. `sync`: it survives a power cut."""
    if is_remote(path):
        return _store(path).write(path, raw)
    return local.replace_file(normal(path), raw, sync=sync)


def create(path: str, raw: bytes) -> None:
    """Writes a file that must not exist yet. Raises FileExistsError if another was faster."""
    if is_remote(path):
        return _store(path).create(path, raw)
    return local.create_file(normal(path), raw)


def remove(path: str) -> None:
    """Removes one file; nothing happens if it is gone already."""
    if is_remote(path):
        return _store(path).remove(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(normal(path))
    return None


def rename(old: str, new: str) -> None:
    """Gives a file another name and replaces the file of that name.

    In a store: a copy that the store makes; the old one stays where deleting is not allowed.
    """
    if is_remote(old):
        return _store(old).rename(old, new)
    os.replace(normal(old), normal(new))
    return None


def remove_folder(path: str) -> None:
    """Removes a folder with all that is in it, and the remains of uploads that were cut short.

    A link is removed, and what it leads to stays; a path that is a link itself raises OSError.
    """
    if not is_remote(path):
        if os.path.lexists(normal(path)):
            shutil.rmtree(normal(path))
        return
    for name in listdir(path):
        inner = f"{path}/{name}"
        remove(inner)
        if listdir(inner):
            remove_folder(inner)
    _store(path).sweep_uploads(path)


def usage(path: str) -> tuple[int, int]:
    """Returns the number of files below a folder and their bytes; a link is a file of its own."""
    if not is_remote(path):
        found = [os.path.join(folder, name) for folder, _, names in os.walk(normal(path)) for name in names]
        return len(found), sum(os.lstat(name).st_size for name in found)
    n_files = n_bytes = 0
    for name in listdir(path):
        inner = f"{path}/{name}"
        if listdir(inner):
            below = usage(inner)
            n_files += below[0]
            n_bytes += below[1]
            continue
        with contextlib.suppress(FileNotFoundError):  # an empty folder, or removed since it was listed
            n_bytes += size(inner)
            n_files += 1
    return n_files, n_bytes


def open_write(path: str, *, size: int | None = None) -> Writer:
    """Opens a large file to be written bit by bit; in a store in parts, several at once. `size` in bytes if known.

    Local: the bytes are on the disk when `close` returns, but the name is visible from the first one on.
    """
    if is_remote(path):
        return _store(path).open_write(path, size=size)
    return local.LocalWriter(normal(path), size=size)


def sweep_uploads(folder: str) -> int:
    """Aborts the uploads into a folder that were cut short; returns their number. Only while there are no writers."""
    return _store(folder).sweep_uploads(folder) if is_remote(folder) else 0


def probes(folder: str) -> dict[str, Callable[[], str]]:
    """Returns requests beyond those above that a run makes of the store of a folder, by name, to be tried there.

    Each returns a problem in words, empty if there is none, or raises its error.
    """
    return _store(folder).probes(folder) if is_remote(folder) else {}
