"""`launch` as a person types it: a process of its own, in a folder of its own, away from the user's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launchyard.host.processes import python_argv
from launchyard.run.own_code import PACKAGE

# Files that a person's own folder may hold, and what they are called is what we, or what we need, is called too.
SHADOWS = (
    *("model.py", "recipes.py", "launchyard.py", "torch.py", "yaml.py", "run.py", "storage/__init__.py"),
    *("training/__init__.py", "launcher/__init__.py", "clusters/__init__.py", "host/__init__.py"),
)


def cast_shadows(folder: Path, *, but: Sequence[str] = ()) -> None:
    """Files that nobody may import."""
    for name in set(SHADOWS) - set(but):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise SystemExit('a process has imported {name} of the working directory')\n")


def clone_code(folder: Path) -> Path:
    """A checkout of launchyard that a test may edit; to be used as PYTHONPATH."""
    shutil.copytree(PACKAGE, folder / PACKAGE.name)
    return folder


def edit_worker(clone: Path, said: str) -> None:
    """Let workers that run this code print something."""
    path = clone / "launchyard/training/worker.py"
    path.write_text(path.read_text().replace("import contextlib\n", f"import contextlib\nprint({said!r})\n", 1))


class Shell:
    """A working directory and user folders of its own; everything below `root` is watched."""

    def __init__(self, root: Path) -> None:
        self.root, self.here = root, root / "work"
        self.here.mkdir(parents=True)
        folders = {f"XDG_{kind}_HOME": str(root / kind.lower()) for kind in ("STATE", "CACHE", "CONFIG")}
        self.env = {**os.environ, **folders, "OMP_NUM_THREADS": "1", "HOME": str(root)}

    def __call__(self, *words: str, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*python_argv(sys.executable), "-m", "launchyard", *words],
            cwd=self.here,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def files(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}
