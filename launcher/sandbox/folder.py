"""The folder of a sandbox in the user's state, its lock against a second command, and its cluster file.

Knows nothing of the services.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launchyard.host.disk import writing_to
from launchyard.host.folders import user_state_folder
from launchyard.host.locks import exclusive
from launchyard.launcher.recipe.bundled import own_clusters
from launchyard.storage.local import replace_file


def state_folder(kind: str) -> Path:
    """The folder of the sandbox of that kind. It may not be there yet."""
    return user_state_folder("sandbox", kind)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder, for this user only; one command at a time changes what is in it, a second waits."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    with exclusive(folder / "lock"), writing_to(str(folder)):
        yield


def write_private(path: Path, text: str) -> None:
    """Replaces a file at once with one that only its owner can read."""
    replace_file(path, text.encode(), mode=0o600)


def write_cluster(kind: str, cluster: dict[str, Any], *, report: Callable[[str], None]) -> None:
    """A cluster file in the user's folder, under the cluster's name. One of other origin stays."""
    import yaml

    made_by = f"# Made by `launch sandbox up {kind}`, which writes it anew; copy it under another name to change it.\n"
    path = own_clusters() / f"{cluster['name']}.yaml"
    if path.exists() and not path.read_text().startswith(made_by):
        report(f"{path} was not made by this command and stays as it is")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, made_by + yaml.safe_dump(cluster, sort_keys=False))
