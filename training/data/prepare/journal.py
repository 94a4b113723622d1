"""The journal of `launch prepare`: its finished part, so that an interrupted one goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, ValidationError

from launchyard.storage import files
from launchyard.storage.files import exists
from launchyard.training.data.index import (
    HoldOut,
    Options,
)
from launchyard.training.data.prepare.encode import (
    TokenizerFile,
)
from launchyard.training.data.prepare.sources import Reading, TextSource
from launchyard.training.data.prepare.writer import SplitState, SplitWriter

JOURNAL = ".prepare"
JOURNAL_SECONDS = 20.0
CHUNKS = re.compile(r"chunk-0-\d+\.bin|(index|digests)\.json")
NOTES = re.compile(r"state\.json|(train|validation)-\d+\.tail")
HALF = re.compile(rf"({CHUNKS.pattern}|{NOTES.pattern}|(dataset|tokenizer)\.json)\.[0-9a-f]{{8}}\.tmp")


@dataclass(frozen=True)
class PrepareProgress:
    """Progress of a run. `bytes_done` of `bytes_total` count the files as stored; `note` is a message to print once."""

    bytes_done: int
    bytes_total: int
    documents: int
    tokens: int
    seconds: float
    note: str = ""


class Journal(BaseModel):
    """OUT/.prepare/state.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    batches: int
    splits: dict[str, SplitState]


@dataclass
class PrepareJob:
    sources: list[TextSource]
    tokenizer: TokenizerFile
    out: str
    options: Options
    on_progress: Callable[[PrepareProgress], None] | None
    readings: list[Reading] = field(default_factory=list)
    empty_documents: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def bytes_total(self) -> int:
        return sum(source.bytes for source in self.sources)

    def writer(self, split: str) -> SplitWriter:
        size = self.options.chunk_tokens
        made = self.tokenizer
        return SplitWriter(f"{self.out}/{split}", chunk_tokens=size, dtype=made.dtype, eos_id=made.eos_id)

    def report(self, tokens: int = 0, note: str = "") -> None:
        if self.on_progress is not None:
            done = sum(reading.bytes for reading in self.readings)
            count = sum(reading.documents for reading in self.readings)
            seconds = time.monotonic() - self.began
            self.on_progress(PrepareProgress(done, self.bytes_total, count, tokens, seconds, note))


# -- the journal -----------------------------------------------------------------------------------------------------
def journal_key(job: PrepareJob, holdout: HoldOut) -> str:
    """Changes when anything changes that decides the bytes."""
    sources = [[source.path, source.bytes, source.stamp] for source in job.sources]
    facts = [1, sources, job.options.model_dump(), holdout.model_dump(), job.tokenizer.sha256]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def save_journal(out: str, key: str, batches: int, writers: dict[str, SplitWriter]) -> None:
    folder = f"{out}/{JOURNAL}"
    splits = {split: writer.save(f"{folder}/{split}-{batches}.tail") for split, writer in writers.items()}
    files.write(
        f"{folder}/state.json", Journal(key=key, batches=batches, splits=splits).model_dump_json().encode(), sync=True
    )
    tails = {state.tail for state in splits.values()}
    _remove(folder, NOTES, but={"state.json", *(os.path.basename(tail) for tail in tails if tail)})


def restore_journal(job: PrepareJob, key: str, writers: dict[str, SplitWriter]) -> int:
    """Returns the number of finished batches, with the writers restored; 0 and a clean folder otherwise."""
    path = f"{job.out}/{JOURNAL}/state.json"
    journal = None
    for folder in ("", "/tokenizer", "/train", "/validation", f"/{JOURNAL}"):
        _remove(f"{job.out}{folder}", HALF)
    if exists(path):
        with contextlib.suppress(ValidationError):
            journal = Journal.model_validate_json(files.read(path))
    if journal is not None and journal.key == key:
        if all(writers[split].restore(state) for split, state in journal.splits.items()):
            tokens = sum(writer.n_tokens for writer in writers.values())
            job.report(tokens, note=f"going on after {tokens:,} tokens that are done")
            return journal.batches
        writers.update({split: job.writer(split) for split in writers})
    if journal is not None:
        why = "its files are damaged" if journal.key == key else "text, tokenizer or options have changed since"
        job.report(note=f"an unfinished data set is in {job.out}, but {why}: starting over")
    remove_unfinished(job.out, keep_lock=True)
    return 0


def remove_unfinished(out: str, *, keep_lock: bool = False, remove_root: bool = False) -> None:
    """Remove the files of an unfinished run of ours, and nothing else; with `remove_root` the empty folder too."""
    for split in ("train", "validation"):
        _remove(f"{out}/{split}", CHUNKS)
    remove_journal(out, keep_lock=keep_lock)
    if not keep_lock and "://" not in out:
        for folder in [f"{out}/train", f"{out}/validation"] + [out] * remove_root:
            with contextlib.suppress(OSError):  # not empty, or not there
                os.rmdir(folder)


def remove_journal(out: str, *, keep_lock: bool = False) -> None:
    folder = f"{out}/{JOURNAL}"
    _remove(folder, NOTES)
    if not keep_lock:
        _remove(folder, re.compile("lock"))
    if not keep_lock and "://" not in out:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _remove(folder: str, which: re.Pattern[str], *, but: Collection[str] = ()) -> None:
    for name in files.listdir(folder):
        if which.fullmatch(name) and name not in but:
            files.remove(f"{folder}/{name}")
