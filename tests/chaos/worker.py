"""The worker as it is, with beacons at instants that no request shows, and small parts and pieces.

`python -m tests.chaos.worker RUN_URL`. Every wrapper tells, and then does what the product does.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from tests.chaos.beacons import tell

SMALL_PART_BYTES = 5 << 20  # the least that S3 takes, so that the state of a small model goes up in parts
SMALL_PIECE_BYTES = 256  # so that a tiny chunk is fetched in pieces


def main(argv: list[str]) -> int:
    tell("start")
    from launchyard.run import append
    from launchyard.storage import files, local
    from launchyard.storage.stores import s3
    from launchyard.training import distributed, worker
    from launchyard.training.checkpoint import checkpointer, snapshots
    from launchyard.training.data import chunks
    from launchyard.training.telemetry import phases

    s3.UPLOAD_PART_BYTES, chunks.PIECE_BYTES = SMALL_PART_BYTES, SMALL_PIECE_BYTES
    before(distributed, "connect", lambda *_: "rendezvous")
    before(phases.PhaseClock, "enter", lambda _, phase: "step" if phase == "optimizer" else None)
    before(checkpointer.Checkpointer, "_buffer", lambda *_: "stage" if on_main_thread() else None)
    before(snapshots, "fill", lambda *_: "stage")
    if not files.is_remote(argv[1]):
        for what in ("write", "create", "remove"):
            around_file(files, what)
        around_file(files, "read_into")
        before(local.LocalWriter, "write", lambda self, raw: f"extend {self._path}")
        before(append.Appender, "_append", lambda self, *_: f"append {self._stem}.jsonl")
    return worker.main(argv)


def on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def before(owner: Any, name: str, beacon: Callable[..., str | None]) -> None:
    """Have a function tell where it is before it begins."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def told(*args: Any, **kwargs: Any) -> Any:
        said = beacon(*args)
        if said is not None:
            tell(said)
        return real(*args, **kwargs)

    setattr(owner, name, told)


def around_file(files: Any, name: str) -> None:
    """Have a function of storage/files.py tell before and after it has done something to a path."""
    real = getattr(files, name)

    @functools.wraps(real)
    def told(path: str, *args: Any, **kwargs: Any) -> Any:
        if files.is_remote(path):
            return real(path, *args, **kwargs)
        tell(f"before {name} {path}")
        result = real(path, *args, **kwargs)
        tell(f"after {name} {path}")
        return result

    setattr(files, name, told)


if __name__ == "__main__":
    code = main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
