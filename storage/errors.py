"""Errors of files, wherever they lie."""

from __future__ import annotations


class StoreError(OSError):
    """A store did not answer as it should within the retry budget. Worth another try later."""


class RefusedError(StoreError, PermissionError):
    """A store refuses: wrong or expired credentials, no right, no such bucket."""


class DeniedError(RefusedError):
    """A store knows its caller and does not let it do this, or cannot do it at all. Another try ends the same way.

    The message ends with the cure, which is also by itself in `cure`.
    """

    cure = ""


class CorruptError(Exception):
    """A file is missing, cut or changed. The message names it."""


class DamagedError(ValueError):
    """A small file is not what was written. The message names it. Another try may find it restored."""


def pointer_fault(path: str, beginning: bytes) -> str | None:
    """The fault of a file that Git LFS did not fetch; None if it is no such pointer."""
    if not beginning.startswith(b"version https://git-lfs"):
        return None
    return f"{path} is a pointer of Git LFS and not the file itself; fetch it with git lfs pull"
