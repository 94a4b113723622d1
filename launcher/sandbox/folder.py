"""What every sandbox keeps: one folder of the user's state, one command at a time in it, and a cluster file of its own.

Knows nothing of the services.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launchyard.launcher.recipe.bundled import own_clusters


def state_folder(kind: str) -> Path:
    """Where the sandbox of that kind keeps all that it has. It may not be there yet."""
    import platformdirs

    return Path(platformdirs.user_state_dir("launchyard")) / "sandbox" / kind


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder, for this user only; one command at a time changes what is in it, a second waits."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_private(path: Path, text: str) -> None:
    """Replace a file at once with one that only its owner can read."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    os.replace(temporary, path)


def write_cluster(kind: str, cluster: dict[str, Any], *, say: Callable[[str], None]) -> None:
    """A cluster file in the user's folder, under the cluster's name. One that somebody else wrote stays."""
    import yaml

    made_by = f"# Made by `launch sandbox up {kind}`, which writes it anew; copy it under another name to change it.\n"
    path = own_clusters() / f"{cluster['name']}.yaml"
    if path.exists() and not path.read_text().startswith(made_by):
        say(f"{path} was not made by this command and stays as it is")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, made_by + yaml.safe_dump(cluster, sort_keys=False))
