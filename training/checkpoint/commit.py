"""The commit of a checkpoint: its identity, and the right to commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from launchyard.run.rundir import RunDir
from launchyard.storage.shards import LogEntry

CheckpointKind = Literal["permanent", "temporary", "best"]


class NoValidCheckpointError(Exception):
    """There are checkpoints, and not one of them is whole."""


class FencedError(Exception):
    """A newer attempt owns the run; this one may no longer write to it."""


@dataclass(frozen=True)
class Identity:
    """Facts that a checkpoint must have in common with the run that loads it."""

    model: dict[str, Any]
    data_digest: str
    recipe_hash: str
    versions: dict[str, str]
    frozen: tuple[str, ...] = ()  # parameters that do not train
    run_id: str = ""
    base: dict[str, Any] = field(default_factory=dict)  # and where they come from; empty if there are none


@dataclass(frozen=True)
class Restored:
    """The state from which an attempt goes on; `source` as the event `started` has it."""

    step: int
    train_state: dict[str, Any]
    source: str


@dataclass(frozen=True)
class Save:
    """One save under way."""

    step: int
    kind: CheckpointKind
    train_state: dict[str, Any]
    began: float
    stall_seconds: float
    held: list[str]  # keys of this rank's tensors, whether it writes them or not, in order
    rows: dict[str, LogEntry] = field(default_factory=dict)


def check_owner(run: RunDir, attempt: int) -> None:
    """Raises FencedError if a newer attempt owns the run: attempts have no gaps, so the next one would be there."""
    if run.is_claimed(attempt + 1):
        raise FencedError(fenced(attempt + 1, attempt))


def fenced(newer: int, mine: int) -> str:
    return f"attempt {newer} has taken over this run; attempt {mine} must not commit"
