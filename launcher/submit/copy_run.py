"""Copying a run out of a folder into the storage of another cluster, with what a resume needs of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from launchyard.errors import NothingRunsError, UserError
from launchyard.launcher.agent.conclusion import last_step
from launchyard.launcher.backends.cluster import Cluster, reach_storage
from launchyard.launcher.format import size
from launchyard.run import layout
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from launchyard.storage.redact import redact
from launchyard.storage.shards import MANIFEST

# What belongs to the jobs and the machine of before, and what the end of a run writes anew.
_LEFT = {
    *(layout.JOB_CODE, layout.JOB_LOG, layout.STOP, layout.PLACE, layout.PROFILE_REQUEST),
    *(layout.WEIGHTS, layout.TENSORBOARD, layout.WANDB),
}
_PIECE_BYTES = 16 << 20


def destination(run: RunDir, run_id: str, cluster: Cluster) -> RunDir | None:
    """Returns where a run in a folder has to be copied to for a cluster; None if its nodes can see the folder.

    UserError if another run lies there, or the storage cannot be reached.
    """
    if not (run.local and files.is_remote(cluster.storage.url)):
        return None
    reach_storage(cluster)
    found = RunDir(f"{cluster.storage.url.rstrip('/')}/{run_id}")
    where = redact(found.url)
    try:
        taken = found.exists(layout.PLAN)
    except OSError as error:
        raise UserError(f"--cluster {cluster.name}: {where} is not reached with its storage: {error}") from error
    if taken:
        raise UserError(f"--cluster {cluster.name}: there is a run at {where} already", hint="launch resume that one")
    return found


def refuse_moved(run: RunDir) -> None:
    """UserError that names the new place, if a run was copied and goes on there."""
    moved = run.find_json(layout.GONE_TO) if run.local else None
    if moved is not None:
        where = redact(str(moved.get("url")))
        raise UserError(f"{run.url}: this run goes on in {where}", hint="launch resume with that place, or its id")


@contextlib.contextmanager
def copied(run: RunDir, to: RunDir, steps: set[int], report: Callable[[str], None]) -> Iterator[None]:
    """Copies a run with the checkpoints of these steps, for a job that is submitted inside.

    Takes the copy back if that is refused, and else leaves the new place in the old one.
    """
    try:
        n_bytes = sum(_copy(run.path(name), to.path(name)) for name in _in_order(run, steps))
        _record_end(run, to)
    except OSError as error:
        _discard(to)
        raise UserError(f"{redact(to.url)}: the run could not be copied there: {error}") from error
    report(f"✓ {'copied':<8} {size(n_bytes)} to {redact(to.url)}")
    try:
        yield
    except (UserError, NothingRunsError):
        _discard(to)
        raise
    with contextlib.suppress(OSError):  # its job is sent; the registry knows the new place
        run.write_json(layout.GONE_TO, {"url": to.url}, sync=True)


def _discard(copy: RunDir) -> None:
    with contextlib.suppress(OSError):
        files.remove_folder(copy.url)


def _record_end(run: RunDir, to: RunDir) -> None:
    """Nothing of the run lives, but in the copy the heartbeat of its last owner is a fresh file."""
    attempts = run.attempts()
    ended = run.outcome()
    if attempts and (ended is None or ended.attempt < attempts[-1]):
        facts = {"attempt": attempts[-1], "step": last_step(run, attempts[-1]), "time": time.time()}
        record = OutcomeRecord(outcome="stopped", reason="moved", message=f"from {run.url}", **facts)
        to.write_outcome(record, of_run=True)


def _in_order(run: RunDir, steps: set[int]) -> list[str]:
    """The files to copy: a manifest after all that it names, and the plan, which makes it a run, last of all."""
    found = [name for name in _below(run, "") if _is_needed(name, steps)]
    return sorted(found, key=lambda name: (name == layout.PLAN, name.endswith(MANIFEST), name))


def _below(run: RunDir, folder: str) -> Iterator[str]:
    for path in Path(run.path(folder)).rglob("*"):
        if path.is_file():
            yield path.relative_to(run.url).as_posix()


def _is_needed(name: str, steps: set[int]) -> bool:
    parts = name.split("/")
    if parts[0] == layout.CHECKPOINTS and len(parts) > 2:
        return layout.checkpoint_step(parts[1]) in steps
    return parts[0] not in _LEFT


def _copy(source: str, target: str) -> int:
    n_bytes = os.path.getsize(source)
    if n_bytes <= _PIECE_BYTES:
        files.write(target, Path(source).read_bytes())
        return n_bytes
    writer = files.open_write(target, size=n_bytes)
    try:
        with open(source, "rb") as file:
            while piece := file.read(_PIECE_BYTES):
                writer.write(piece)
        writer.close()
    except BaseException:
        writer.discard()
        raise
    return n_bytes
