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

from launchyard.model.text.companions import MORE_TEMPLATES
from launchyard.storage import files
from launchyard.storage.files import exists
from launchyard.training.data.index import REJECTS, HoldOut, Options
from launchyard.training.data.prepare.encode import TextBatch, TokenizerFile
from launchyard.training.data.prepare.sources import Reading, TextSource
from launchyard.training.data.prepare.writer import SplitState, SplitWriter

JOURNAL = ".prepare"
JOURNAL_SECONDS = 20.0
MAX_MARKS = 1024  # then every second one goes
CHUNKS = re.compile(r"chunk-0-\d+\.bin|(index|digests)\.json")
NOTES = re.compile(r"state\.json|(train|validation)-\d+\.tail")
HALF = re.compile(rf"({CHUNKS.pattern}|{NOTES.pattern}|rejects\.jsonl|dataset\.json)\.[0-9a-f]{{8}}\.tmp")
HALF_COMPANION = re.compile(r".+\.[0-9a-f]{8}\.tmp")


@dataclass(frozen=True)
class PrepareProgress:
    """Progress of a run. `bytes_done` of `bytes_total` count the files as stored; `note` is a message to print once."""

    bytes_done: int
    bytes_total: int
    documents: int
    tokens: int
    seconds: float
    note: str = ""


class FileMark(BaseModel):
    """The place before a file: where a restart goes on if that file, or a later one, has changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    batches: int
    tokens: dict[str, int]
    documents: dict[str, int]


class Journal(BaseModel):
    """OUT/.prepare/state.json. `key` stands for the options and for all files read so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    batches: int
    splits: dict[str, SplitState]
    marks: list[FileMark] = []


@dataclass
class PrepareJob:
    sources: list[TextSource]
    tokenizer: TokenizerFile
    out: str
    options: Options
    on_progress: Callable[[PrepareProgress], None] | None
    skip_invalid: bool = False
    readings: list[Reading] = field(default_factory=list)
    empty_documents: int = 0
    control_tokens: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def bytes_total(self) -> int:
        return sum(source.bytes for source in self.sources)

    def writer(self, split: str) -> SplitWriter:
        size = self.options.chunk_tokens
        made = self.tokenizer
        folder = f"{self.out}/{split}"
        return SplitWriter(folder, chunk_tokens=size, dtype=made.dtype, eos_id=made.eos_id, bos_id=made.bos_id)

    def report(self, tokens: int = 0, note: str = "") -> None:
        if self.on_progress is not None:
            done = sum(reading.bytes for reading in self.readings)
            count = sum(reading.documents for reading in self.readings)
            seconds = time.monotonic() - self.began
            self.on_progress(PrepareProgress(done, self.bytes_total, count, tokens, seconds, note))


# -- the journal -----------------------------------------------------------------------------------------------------
class FinishedWork:
    """The finished part: the number of batches in the writers, and the marks among them."""

    def __init__(self, job: PrepareJob, holdout: HoldOut) -> None:
        self._job = job
        self._keys = _keys(job, holdout)
        self._files = 0
        self._marks: list[FileMark] = []
        self.batches = 0
        self.writers = {split: job.writer(split) for split in ("train", "validation")}

    @property
    def tokens(self) -> int:
        return sum(writer.n_tokens for writer in self.writers.values())

    @property
    def chunks(self) -> int:
        return sum(writer.n_chunks for writer in self.writers.values())

    def begin(self, batch: TextBatch) -> None:
        """Called before a batch is stored."""
        if batch.complete_files is not None:
            tokens = {split: writer.n_tokens for split, writer in self.writers.items()}
            documents = {split: writer.documents for split, writer in self.writers.items()}
            key = self._keys[batch.complete_files]
            self._marks.append(FileMark(key=key, batches=self.batches, tokens=tokens, documents=documents))
            if len(self._marks) > MAX_MARKS:
                del self._marks[1:-1:2]
        self.batches += 1
        self._files = batch.files

    def save(self) -> None:
        folder = f"{self._job.out}/{JOURNAL}"
        splits = {split: made.save(f"{folder}/{split}-{self.batches}.tail") for split, made in self.writers.items()}
        journal = Journal(key=self._keys[self._files], batches=self.batches, splits=splits, marks=self._marks)
        files.write(f"{folder}/state.json", journal.model_dump_json().encode(), sync=True)
        tails = {state.tail for state in splits.values()}
        _remove(folder, NOTES, but={"state.json", *(os.path.basename(tail) for tail in tails if tail)})

    def restore(self) -> None:
        """Goes on after the files that have not changed; from the start, in a clean folder, if there are none."""
        out = self._job.out
        path = f"{out}/{JOURNAL}/state.json"
        for folder in ("", "/train", "/validation", f"/{JOURNAL}"):
            _remove(f"{out}{folder}", HALF)
        for folder in ("tokenizer", f"tokenizer/{MORE_TEMPLATES}"):
            _remove(f"{out}/{folder}", HALF_COMPANION)
        if exists(path):
            fault = self._restore(path)
            if not fault:
                self._job.report(self.tokens, note=f"going on after {self.tokens:,} tokens that are done")
                return
            self._job.report(note=f"an unfinished data set is in {out}, but {fault}: starting over")
        self.writers = {split: self._job.writer(split) for split in self.writers}
        remove_unfinished(out, keep_lock=True)

    def _restore(self, path: str) -> str:
        """Returns the reason why nothing of a journal can be used; empty if the writers are restored."""
        try:
            journal = Journal.model_validate_json(files.read(path))
        except ValidationError:
            return "its journal is damaged"
        known = {key: count for count, key in enumerate(self._keys)}
        marks = [mark for mark in journal.marks if mark.key in known]
        if journal.key not in known and not (marks and marks[-1].batches):
            return "text, tokenizer, options or launchyard have changed since"
        if not all(self.writers[split].restore(state) for split, state in journal.splits.items()):
            return "its files are damaged"
        self._marks = marks
        if journal.key in known:
            self.batches = journal.batches
            self._files = known[journal.key]
            return ""
        last = self._marks.pop()
        self.batches = last.batches
        self._files = known[last.key]
        for split, writer in self.writers.items():
            writer.cut_back(tokens=last.tokens[split], documents=last.documents[split])
        self.save()
        for split, writer in self.writers.items():
            names = {f"chunk-0-{number}.bin" for number in range(writer.n_chunks)}
            _remove(f"{self._job.out}/{split}", CHUNKS, but=names)
        return ""


def _keys(job: PrepareJob, holdout: HoldOut) -> list[str]:
    """Returns what decides the bytes of the first 0, 1, 2 … files: a key each, which changes with any of it."""
    facts = [2, job.options.model_dump(), holdout.model_dump(), job.tokenizer.sha256]
    keys = [hashlib.sha256(json.dumps(facts).encode()).hexdigest()]
    for source in job.sources:
        fact = [keys[-1], source.path, source.bytes, source.stamp]
        keys.append(hashlib.sha256(json.dumps(fact).encode()).hexdigest())
    return keys


def remove_unfinished(out: str, *, keep_lock: bool = False, remove_root: bool = False) -> None:
    """Remove the files of an unfinished run of ours, and nothing else; with `remove_root` the empty folder too."""
    for split in ("train", "validation"):
        _remove(f"{out}/{split}", CHUNKS)
    _remove(out, re.compile(re.escape(REJECTS)))
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
