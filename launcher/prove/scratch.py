"""A copy of a run as it was at one step, on this machine, in which steps are made again. The run is only read."""

from __future__ import annotations

import os
from collections.abc import Iterator

from launchyard.run import layout
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.storage import files

_OF_RUN = (layout.RECIPE, layout.PLAN, layout.CODE, layout.DATA_PLACE, layout.ROLLBACKS)
_PIECE_BYTES = 16 << 20
_OF_ATTEMPT = (layout.job, layout.outcome)


def copy_at(run: RunDir, step: int, attempt: int, folder: str) -> RunDir:
    """As `attempt` had it: with the checkpoint of `step`, if that is not 0, and nothing of the attempts after it."""
    copy = RunDir(folder)
    for name in _files(run, step, attempt):
        _copy(run.path(name), copy.path(name))
    if copy.outcome(attempt) is None:  # the run may go on meanwhile; its copy does not
        record = OutcomeRecord(outcome="stopped", reason="copied", message=f"from {run.url}", attempt=attempt, time=0.0)
        copy.write_outcome(record)
    return copy


def _copy(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as file:
        while piece := files.read(source, file.tell(), _PIECE_BYTES):
            file.write(piece)


def _files(run: RunDir, step: int, attempt: int) -> Iterator[str]:
    yield from (name for name in _OF_RUN if run.exists(name))
    yield from _below(run, layout.TOKENIZER_FOLDER)
    yield from _below(run, layout.OWN_CODE_FOLDER)
    for number in run.attempts():
        if number <= attempt:
            yield from (name for file in _OF_ATTEMPT if run.exists(name := file(number)))
            events = layout.grown(layout.events(number)).rpartition("/")[0]
            yield from (f"{events}/{name}" for name in run.listdir(events) if layout.is_grown(name, layout.EVENTS))
    if step:
        yield from _below(run, layout.checkpoint_folder(step))


def _below(run: RunDir, folder: str) -> Iterator[str]:
    """The files of a folder, and of the folders in it."""
    for name in run.listdir(folder):
        inner = [f"{folder}/{name}/{one}" for one in run.listdir(f"{folder}/{name}")]
        yield from inner or [f"{folder}/{name}"]
