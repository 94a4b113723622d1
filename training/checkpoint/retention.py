"""Selection of the checkpoints to keep, and removal of one: its manifest first."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection

from launchyard.run.rundir import RunDir
from launchyard.storage.errors import CorruptError
from launchyard.storage.shards import MANIFEST, read_manifest


def superfluous(
    kinds: dict[int, str], *, newest: int, keep: int | None, best: Collection[int] = (), reach: int = 0
) -> list[int]:
    """Steps to remove: old temporaries, permanents beyond the last `keep`, and what was among the best once.

    Those in `best` stay, whatever they are; they do not count for `keep` unless they are permanent. The commit before
    the newest always stays, to fall back on should the newest turn out damaged; so do those of the last `reach` steps
    and one before them, so that training can always go back by so many.
    """
    before = [step for step in sorted(kinds) if step < newest]
    permanent = [step for step in sorted(kinds) if kinds[step] == "permanent"]
    extra = permanent[: max(0, len(permanent) - keep)] if keep is not None else []
    passing = [step for step, kind in kinds.items() if kind in ("temporary", "best") and step < newest]
    beyond = [step for step in before if step <= newest - reach]
    reachable = {*beyond[-1:], *(step for step in before if step > newest - reach)} if reach else set()
    return sorted({*extra, *passing} - {newest, *before[-1:], *best} - reachable)


def remove_checkpoint(run: RunDir, step: int) -> None:
    """Manifest first: a checkpoint that is half removed does not exist."""
    folder = run.checkpoint_dir(step)
    named: set[str] = set()
    with contextlib.suppress(FileNotFoundError, CorruptError):
        named = {*read_manifest(run.path(folder)).files}  # a listing may lag
    run.remove(f"{folder}/{MANIFEST}")
    for entry in sorted(named | {*run.listdir(folder)}):
        run.remove(f"{folder}/{entry}")
    remove_empty(run, folder)


def remove_empty(run: RunDir, folder: str) -> None:
    """Local folders only; an object store has none."""
    if run.local:
        with contextlib.suppress(OSError):
            os.rmdir(run.path(folder))
