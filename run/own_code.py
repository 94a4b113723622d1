"""launchyard's own code: which files it is, their digest, and whether they are those that a run was recorded with.

The one file that knows how the source tree lies on disk. Standard library only: a worker asks before it loads torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launchyard.run.rundir import RunDir

# In a checkout this folder has links to the rooms, which lie at the top of the repository.
PACKAGE = Path(__file__).absolute().parents[1]
# The folder that is on the path of this process: src of a checkout, a copy, or site-packages.
ROOT = PACKAGE.parent
# Files that the digest covers: all that decide the behaviour of a process. The texts of the quickstart do not.
_DECIDING = (".py", ".yaml", ".yml", ".json")


class OtherCodeError(ValueError):
    """A process of a run does not run the code that the run was recorded with."""


def is_installed(root: Path = ROOT) -> bool:
    """Does it lie where a package manager has put it? Such code is replaced by people, and not under a job."""
    return any(root.glob("launchyard-*.dist-info"))


def movable() -> Path | None:
    """The folder to put first on the path of processes that we start; None where the installed package will do."""
    return None if is_installed() else ROOT


def own_files(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """(name, path) of each file of the package below `root`, sorted by name; without compiled ones."""
    found = []
    for folder, inner, names in os.walk(root / PACKAGE.name, followlinks=True):
        inner[:] = [name for name in inner if name != "__pycache__"]
        found += [os.path.join(folder, name) for name in names]
    start = len(str(root)) + 1
    yield from sorted((path[start:].replace(os.sep, "/"), path) for path in found)


def checkout() -> Path | None:
    """The repository that this process runs from; None for a copy of the code or an installed package."""
    root = ROOT.parent
    return root if root / "src" == ROOT and (root / "pyproject.toml").is_file() else None


def digest(root: Path = ROOT) -> str:
    """The same for every copy of the same code, whatever its path, its times and its compiled files; 16 hex digits."""
    found = hashlib.sha256()
    for name, path in own_files(root):
        if name.endswith(_DECIDING):
            with open(path, "rb") as file:
                content = file.read()
            found.update(f"{name}\0{len(content)}\0".encode())
            found.update(content)
    return found.hexdigest()[:16]


def package_version() -> str:
    """Of the installed package. A copy beside it has none of its own, so that only the digest distinguishes code."""
    from importlib import metadata

    try:
        return metadata.version("launchyard")
    except metadata.PackageNotFoundError:
        return "unknown"


def what_differs(run: RunDir) -> str | None:
    """None if this process runs the code that its run has recorded, or if nothing is recorded; else the difference."""
    from launchyard.run.layout import CODE

    recorded = run.find_json(CODE)
    if recorded is None:  # started by hand, or a damaged record
        return None
    source = recorded.get("source")
    ours = digest() if source else None
    if source == ours:
        return None
    return (
        f"this process runs launchyard {package_version()} ({ours}) from {ROOT}, but the run was submitted with "
        f"launchyard {recorded.get('launchyard', 'unknown')} ({source}); see that all nodes find that code, or "
        "record this one: launch resume with the launcher that is installed here"
    )
