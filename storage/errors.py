"""What can go wrong with a file, wherever it lies."""

from __future__ import annotations


class StoreError(OSError):
    """A store did not do what was asked within the patience of the process. Worth another try later."""


class RefusedError(StoreError, PermissionError):
    """A store refuses: wrong or expired credentials, no right, no such bucket."""


class CorruptError(Exception):
    """A file is missing, cut or changed. The message names it."""
