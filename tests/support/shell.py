"""`launch` as a person types it: a process of its own, in a folder of its own, away from the user's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


class Shell:
    """A working directory and user folders of its own; everything below `root` is watched."""

    def __init__(self, root: Path) -> None:
        self.root, self.here = root, root / "work"
        self.here.mkdir(parents=True)
        folders = {f"XDG_{kind}_HOME": str(root / kind.lower()) for kind in ("STATE", "CACHE", "CONFIG")}
        self.env = {**os.environ, **folders, "OMP_NUM_THREADS": "1", "HOME": str(root)}

    def __call__(self, *words: str, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launchyard", *words],
            cwd=self.here,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def files(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}
