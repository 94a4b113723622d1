"""Text to chunks of tokens: the whole journey of `launch prepare`. Restartable; the same bytes for any workers.

A journal in OUT/.prepare says how many batches of text are safely in chunks, and keeps the tokens of the chunk that is
not full yet. A restart reads the text again, skips those batches and goes on. dataset.json is written last.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, ValidationError

from model import files
from model.files import exists, normal
from training.data.chunks import Array
from training.data.encode import PrepareError, TokenizerFile, encode_in_order, in_batches, open_tokenizer
from training.data.index import (
    DATASET,
    TOKENIZER,
    Dataset,
    HoldOut,
    Options,
    SourceEntry,
    TokenizerEntry,
    dataset_digest,
    read_dataset,
)
from training.data.sources import Reading, Source, digest_of, documents, find_sources
from training.data.split import Piece, Splitter, choose_holdout, enough_documents
from training.data.writer import SplitState, SplitWriter, check_chunk_tokens

CHUNK_TOKENS = 2**25  # 64 MiB of uint16
JOURNAL = ".prepare"
JOURNAL_SECONDS = 20.0
BYTES_PER_WORKER = 32 << 20  # less does not pay for a process: the tokenizer has threads of its own
CHUNKS = re.compile(r"chunk-0-\d+\.bin|(index|digests)\.json")
NOTES = re.compile(r"state\.json|(train|validation)-\d+\.tail")
HALF = re.compile(rf"({CHUNKS.pattern}|{NOTES.pattern}|(dataset|tokenizer)\.json)\.[0-9a-f]{{8}}\.tmp")


@dataclass(frozen=True)
class Progress:
    """How far it is. `bytes_done` of `bytes_total` count the files as they lie; `note` is something to say once."""

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


def prepare(
    sources: list[str],
    *,
    tokenizer: str,
    out: str,
    validation: float = 0.0,
    seed: int = 0,
    chunk_tokens: int = CHUNK_TOKENS,
    text_key: str = "text",
    eos: str | None = None,
    workers: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Dataset:
    """Tokenize files, folders, globs and URLs into `out`, a local folder or URL, and say what came of it.

    Nothing is done again that is done; another data set in `out` is never overwritten. ValueError: the user's
    mistake, and `out` is left as it was. PrepareError: a process died; the same call goes on.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation is {validation}; a share must lie in [0, 1)")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 is needed")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must not be negative")
    options = Options(validation=validation, seed=seed, chunk_tokens=chunk_tokens, text_key=text_key, eos=eos)
    job = _Job(find_sources(sources), open_tokenizer(tokenizer, eos=eos), normal(out), options, on_progress)
    check_chunk_tokens(chunk_tokens, job.tokenizer.dtype)
    _check_place(job)
    if (done := read_dataset(job.out)) is not None:
        return _same(job, done)
    stood = os.path.exists(job.out)
    with _lock(job.out):
        try:
            return _prepare(job, workers or len(os.sched_getaffinity(0)))
        except ValueError:
            _clear(job.out, whole=not stood)
            raise


@dataclass
class _Job:
    sources: list[Source]
    tokenizer: TokenizerFile
    out: str
    options: Options
    on_progress: Callable[[Progress], None] | None
    readings: list[Reading] = field(default_factory=list)
    empty_documents: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def bytes_total(self) -> int:
        return sum(source.bytes for source in self.sources)

    def writer(self, split: str) -> SplitWriter:
        size, made = self.options.chunk_tokens, self.tokenizer
        return SplitWriter(f"{self.out}/{split}", chunk_tokens=size, dtype=made.dtype, eos_id=made.eos_id)

    def tell(self, tokens: int = 0, note: str = "") -> None:
        if self.on_progress is not None:
            done = sum(reading.bytes for reading in self.readings)
            count = sum(reading.documents for reading in self.readings)
            seconds = time.monotonic() - self.began
            self.on_progress(Progress(done, self.bytes_total, count, tokens, seconds, note))


# -- before ----------------------------------------------------------------------------------------------------------
def _check_place(job: _Job) -> None:
    """`out` must be new, empty, or ours. ValueError otherwise."""
    if "://" in job.out or not os.path.exists(job.out):
        return
    if not os.path.isdir(job.out):
        raise ValueError(f"{job.out} is a file; --out names a folder")
    names = set(os.listdir(job.out))
    if names and not names & {DATASET, JOURNAL}:
        raise ValueError(f"{job.out} is not empty and holds no data set of ours; choose another --out")


def _same(job: _Job, done: Dataset) -> Dataset:
    """What is there already, if it is what was asked for; ValueError names the differences."""
    wanted = dict(zip(_names(job.sources), job.sources, strict=True))
    there = {entry.name: entry for entry in done.sources}
    faults = [f"{name} was not part of it" for name in wanted if name not in there]
    faults += [f"{name} was part of it" for name in there if name not in wanted]
    for key, value in done.options.model_dump().items():
        if (now := getattr(job.options, key)) != value:
            faults.append(f"{key} was {value} and is {now} now")
    if done.tokenizer.sha256 != job.tokenizer.sha256:
        faults.append("it was made with another tokenizer")
    if not faults:
        faults = [f"{name} has changed" for name in wanted if digest_of(wanted[name]) != there[name].xxh3]
    if faults:
        raise ValueError(
            f"{job.out} holds another data set: {'; '.join(faults[:8])}; choose another --out, or remove it"
        )
    _remove_journal(job.out)
    job.tell(done.tokens, note=f"{job.out} is already prepared from the same text: nothing to do")
    return done


@contextlib.contextmanager
def _lock(out: str) -> Iterator[None]:
    """One at a time on this machine's folders; the lock goes with its process."""
    if "://" in out:
        yield
        return
    os.makedirs(f"{out}/{JOURNAL}", exist_ok=True)
    with open(f"{out}/{JOURNAL}/lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrepareError(
                f"another `launch prepare` is writing {out}; wait for it, or choose another --out"
            ) from None
        yield


# -- the work --------------------------------------------------------------------------------------------------------
def _prepare(job: _Job, workers: int) -> Dataset:
    holdout = _holdout(job)
    writers = {split: job.writer(split) for split in ("train", "validation")}
    key = _key(job, holdout)
    done = _go_on(job, key, writers)
    workers = min(workers, 1 + job.bytes_total // BYTES_PER_WORKER)
    splitter = Splitter(holdout, share=job.options.validation, seed=job.options.seed)
    batches = in_batches(_pieces(job, splitter))
    for _ in range(done):
        next(batches, None)
    saved, at = time.monotonic(), sum(writer.n_chunks for writer in writers.values())
    for number, (pieces, ids, lengths) in enumerate(encode_in_order(batches, job.tokenizer, workers=workers), done + 1):
        _store(writers, pieces, ids, lengths)
        chunks = sum(writer.n_chunks for writer in writers.values())
        if chunks > at or time.monotonic() - saved > JOURNAL_SECONDS:
            _save_journal(job.out, key, number, writers)
            saved, at = time.monotonic(), chunks
        job.tell(sum(writer.n_tokens for writer in writers.values()))
    return _finish(job, holdout, writers)


def _holdout(job: _Job) -> HoldOut:
    """Count documents, as far as it matters, and choose."""
    share, count = job.options.validation, 0
    enough = enough_documents(share) if share else 0
    for source in job.sources:
        if count >= enough:
            break
        if source.kind == "text":
            count += 1
            continue
        for document in documents(Reading(source), text_key=job.options.text_key):
            count += any(document)
            if count >= enough:
                break
    return choose_holdout(share, n_documents=count, total_bytes=job.bytes_total)


def _pieces(job: _Job, splitter: Splitter) -> Iterator[Piece]:
    for source in job.sources:
        reading = Reading(source)
        job.readings.append(reading)
        for document in documents(reading, text_key=job.options.text_key):
            empty = True
            for piece in splitter.pieces(document):
                empty = False
                yield piece
            job.empty_documents += empty


def _store(writers: dict[str, SplitWriter], pieces: list[Piece], ids: Array, lengths: list[int]) -> None:
    """Append pieces where they belong. A document ends where a part of it goes elsewhere, and begins anew after it."""
    start = 0
    for piece, length in zip(pieces, lengths, strict=True):
        here, elsewhere = ("validation", "train") if piece.held_out else ("train", "validation")
        writers[elsewhere].end_document()
        writers[here].add(ids[start : start + length])
        if piece.last:
            writers[here].end_document()
        start += length


def _finish(job: _Job, holdout: HoldOut, writers: dict[str, SplitWriter]) -> Dataset:
    wanted = ["train"] if holdout.unit == "nothing" else ["train", "validation"]
    for split in wanted:
        if writers[split].n_tokens < 2:
            raise ValueError(
                f"the {split} part has {writers[split].n_tokens} tokens: there is too little text "
                f"({job.bytes_total} bytes in {len(job.sources)} files, validation {job.options.validation})"
            )
    entries = {split: writers[split].finish() for split in wanted}
    made = job.tokenizer
    digests = {split: entry.digest for split, entry in entries.items()}
    dataset = Dataset(
        digest=dataset_digest(digests, made.sha256),
        tokenizer=TokenizerEntry(file=TOKENIZER, sha256=made.sha256, eos=made.eos, eos_id=made.eos_id),
        vocab_size=made.vocab_size,
        dtype=made.dtype,
        documents=sum(reading.documents for reading in job.readings) - job.empty_documents,
        empty_documents=job.empty_documents,
        tokens=sum(entry.tokens for entry in entries.values()),
        holdout=holdout,
        options=job.options,
        sources=_entries(job),
        splits=entries,
    )
    files.write(f"{job.out}/{TOKENIZER}", made.raw, sync=True)
    files.write(f"{job.out}/{DATASET}", dataset.model_dump_json(indent=1).encode() + b"\n", sync=True)
    _remove_journal(job.out)
    job.tell(dataset.tokens)
    return dataset


def _entries(job: _Job) -> list[SourceEntry]:
    names = _names(job.sources)
    return [
        SourceEntry(name=name, bytes=reading.bytes, documents=reading.documents, xxh3=reading.digest)
        for name, reading in zip(names, job.readings, strict=True)
    ]


def _names(sources: list[Source]) -> list[str]:
    """Names that stay when the sources move together: local ones relative to the folder they share."""
    local = [os.path.dirname(source.path) for source in sources if "://" not in source.path]
    shared = os.path.commonpath(local) if local else ""
    return [source.name if "://" in source.path else os.path.relpath(source.path, shared) for source in sources]


# -- the journal -----------------------------------------------------------------------------------------------------
def _key(job: _Job, holdout: HoldOut) -> str:
    """Changes when anything changes that decides the bytes."""
    sources = [[source.path, source.bytes, source.stamp] for source in job.sources]
    facts = [1, sources, job.options.model_dump(), holdout.model_dump(), job.tokenizer.sha256]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _save_journal(out: str, key: str, batches: int, writers: dict[str, SplitWriter]) -> None:
    folder = f"{out}/{JOURNAL}"
    splits = {split: writer.save(f"{folder}/{split}-{batches}.tail") for split, writer in writers.items()}
    files.write(
        f"{folder}/state.json", Journal(key=key, batches=batches, splits=splits).model_dump_json().encode(), sync=True
    )
    kept = {state.tail for state in splits.values()}
    _remove(folder, NOTES, but={"state.json", *(os.path.basename(tail) for tail in kept if tail)})


def _go_on(job: _Job, key: str, writers: dict[str, SplitWriter]) -> int:
    """How many batches are done, with the writers as they were then; 0 and a clean folder otherwise."""
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
            job.tell(tokens, note=f"going on after {tokens:,} tokens that are done")
            return journal.batches
        writers.update({split: job.writer(split) for split in writers})
    if journal is not None:
        why = "its files are damaged" if journal.key == key else "text, tokenizer or options have changed since"
        job.tell(note=f"an unfinished data set is in {job.out}, but {why}: starting anew")
    _clear(job.out, keep_lock=True)
    return 0


def _clear(out: str, *, keep_lock: bool = False, whole: bool = False) -> None:
    """Remove what an unfinished run of ours wrote, and nothing else; with `whole` the empty folder too."""
    for split in ("train", "validation"):
        _remove(f"{out}/{split}", CHUNKS)
    _remove_journal(out, keep_lock=keep_lock)
    if not keep_lock and "://" not in out:
        for folder in [f"{out}/train", f"{out}/validation"] + [out] * whole:
            with contextlib.suppress(OSError):  # not empty, or not there
                os.rmdir(folder)


def _remove_journal(out: str, *, keep_lock: bool = False) -> None:
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
