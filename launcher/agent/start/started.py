"""A torchrun that was started, and the folder of the socket over which it asks its server for workers.

The name of a socket may hold about a hundred characters, and temporary folders of jobs are often longer than that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass

from launchyard.host.processes import end_child

LONGEST = 50  # characters of a folder in which there is room for the names below it
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  a folder of ours is made there; where the temporary folder has too long a name


@dataclass(frozen=True)
class Started:
    child: subprocess.Popen[bytes]
    folder: str

    def end(self) -> int | None:
        """Ends it if it has not ended by itself; its exit code, None if it had not."""
        code = self.child.poll()
        if code is None:
            end_child(self.child)
        shutil.rmtree(self.folder, ignore_errors=True)
        return code


def make_folder() -> str:
    """A new one that is ours alone. OSError if every temporary folder has too long a name, or cannot be written."""
    given = tempfile.gettempdir()
    for place in (given, *SHORT_FOLDERS):
        if len(place) <= LONGEST and os.access(place, os.W_OK | os.X_OK):
            return tempfile.mkdtemp(prefix="launchyard-", dir=place)
    raise OSError(
        f"no folder for a socket: {given} is longer than {LONGEST} characters, and {', '.join(SHORT_FOLDERS)} cannot "
        "be written; set TMPDIR to a shorter one on the nodes"
    )
