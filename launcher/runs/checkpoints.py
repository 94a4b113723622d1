"""The committed checkpoints of a run as facts, and their verification. Reads manifests; loads no tensors."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from launchyard.run.checkpoints import RunCheckpoints
from launchyard.run.rundir import RunDir


@dataclass(frozen=True)
class Saved:
    """One checkpoint. `created`: seconds since the epoch; `verified` only if everything was read; `faults` as text.

    `foreign`, `late`: the reason why it does not count and is never loaded as the newest: it is of another run, or a
    later attempt went on from an earlier step. Both None if it counts.
    """

    step: int
    path: str
    kind: str | None = None
    bytes: int | None = None
    world_size: int | None = None
    attempt: int | None = None
    created: float | None = None
    data_digest: str | None = None
    foreign: str | None = None
    late: str | None = None
    verified: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Its kind, for people."""
        if self.foreign:
            return "foreign"
        return "late" if self.late else self.kind or "unreadable"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def row(self, *, verified: bool) -> list[str]:
        """step, kind, size, workers, age (, whole or damaged)."""
        from launchyard.launcher.format import duration, size

        facts = [str(self.step), self.label, size(self.bytes) if self.bytes is not None else "-"]
        facts.append(str(self.world_size) if self.world_size is not None else "-")
        facts.append(duration(max(0.0, time.time() - self.created)) if self.created is not None else "-")
        return [*facts, *(["damaged" if self.faults else "whole"] if verified else [])]


def list_saved(run: RunDir, *, verify_all: bool = False) -> list[Saved]:
    """Checkpoints of a run, oldest first; with `verify_all` every byte is read and hashed."""
    checkpoints = RunCheckpoints(run)
    found: list[Saved] = []
    for step in checkpoints.steps():
        with contextlib.suppress(FileNotFoundError):  # removed since it was listed
            foreign = checkpoints.foreign(step) or None
            late = None if foreign else checkpoints.late(step) or None
            saved = _inspect(run.path(run.checkpoint_dir(step)), step, verify_all)
            found.append(replace(saved, foreign=foreign, late=late))
    return found[::-1]


def _inspect(folder: str, step: int, verify_all: bool) -> Saved:
    from launchyard.storage.errors import CorruptError, StoreError
    from launchyard.storage.shards import read_manifest, verify

    try:
        manifest = read_manifest(folder)
    except StoreError:  # its manifest is unknown, not damaged
        raise
    except (CorruptError, OSError) as error:
        return Saved(step, folder, verified=verify_all, faults=[str(error)])
    return Saved(
        step=step,
        path=folder,
        kind=manifest.kind,
        bytes=manifest.total_bytes,
        world_size=manifest.world_size,
        attempt=manifest.attempt,
        created=manifest.created,
        data_digest=manifest.data_digest,
        verified=verify_all,
        faults=list(verify(folder, manifest)) if verify_all else [],
    )


@dataclass(frozen=True)
class Gone:
    """The newest checkpoint by the run's own records, which no resume can go on from. `what`: what is wrong with it."""

    what: str
    go_back: tuple[str, ...]  # commands that give it up on purpose, the best one first


def newest_gone(run: RunDir, run_id: str) -> Gone | None:
    """None if the newest checkpoint by the run's own records is there, and is of this run."""
    checkpoints = RunCheckpoints(run)
    newest = checkpoints.newest()
    foreign = next((step for step in checkpoints.steps() if step > (newest or 0) and checkpoints.foreign(step)), None)
    step = foreign if foreign is not None else checkpoints.missing()
    if step is None:
        return None
    folder = run.path(run.checkpoint_dir(step))
    what = (
        f"{folder} {checkpoints.foreign(step)}" if step == foreign else f"step {step} was saved, and {folder} is gone"
    )
    resume = f"launch resume {run_id}"
    back = [f"{resume} --from-step {newest}"] if newest else []
    return Gone(what, (*back, f"{resume} --from-scratch"))
