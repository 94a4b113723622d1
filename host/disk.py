"""Hints to the kernel about a large file that is being written: room for it at once, and bytes to the disk early.

Nothing depends on them: where the system or the file system knows no such call, the file is written all the same.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

_KEEP_SIZE = 1  # of fallocate: the file is as long as what has been written
_START_WRITING = 2  # of sync_file_range


@contextmanager
def writing_to(place: str) -> Iterator[None]:
    """Names the place of a write that found no room: of a file that is open, the system names nothing."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.filename = place
        raise


def reserve_room(file: int, n_bytes: int) -> None:
    """Finds room for a file in one piece. OSError if there is none."""
    call = _call("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call is not None and n_bytes and call(file, _KEEP_SIZE, 0, n_bytes):
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(code, os.strerror(code))


def begin_writing(file: int, start: int, n_bytes: int) -> None:
    """Has the disk begin with these bytes while others follow. Promises nothing: that is what fsync is for."""
    call = _call("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    if call is not None:
        call(file, start, n_bytes, _START_WRITING)


@cache
def _call(name: str, *types: type) -> Callable[..., int] | None:
    """Linux' own calls: what glibc makes of posix_fallocate writes zeros where the file system cannot reserve."""
    if not sys.platform.startswith("linux") or sys.maxsize < 1 << 32:
        return None
    try:
        found = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
    found.argtypes = types
    return found  # type: ignore[no-any-return]
