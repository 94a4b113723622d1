"""Text on this machine, with the few calls of an fsspec file system that sources.py needs.

A local plan does not have to wait for fsspec, whose import takes 60 ms, and a folder that cannot be read is an error:
fsspec leaves it out.
"""

from __future__ import annotations

import glob
import os


class LocalFiles:
    """Paths of this machine."""

    exists = staticmethod(os.path.exists)
    isdir = staticmethod(os.path.isdir)

    @staticmethod
    def glob(pattern: str) -> list[str]:
        """Returns the paths that match, `**` for folders at any depth."""
        return glob.glob(pattern, recursive=True, include_hidden=True)

    @staticmethod
    def find(folder: str) -> list[str]:
        """Returns the files below a folder, through links, each folder once; hidden folders are left out.

        Raises OSError for a folder that cannot be listed.
        """
        found: list[str] = []
        seen: set[str] = set()
        for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
            seen.add(os.path.realpath(parent))
            shown = [name for name in folders if not name.startswith(".")]
            folders[:] = [name for name in shown if os.path.realpath(os.path.join(parent, name)) not in seen]
            found += (os.path.join(parent, name) for name in names)
        return found

    @staticmethod
    def info(path: str) -> dict[str, float]:
        """Returns the size in bytes, and the time of the last change in seconds since the epoch."""
        facts = os.stat(path)
        return {"size": facts.st_size, "mtime": facts.st_mtime}


def _raise(error: OSError) -> None:
    raise error
