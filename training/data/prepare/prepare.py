"""Text to chunks of tokens: the whole journey of `launch prepare`. Restartable; the same bytes for any workers.

A journal in OUT/.prepare records the number of batches in chunks, and keeps the tokens of the last chunk, which is
not full yet. A restart reads the text again, skips those batches and goes on: before the first file that has changed.
dataset.json is written last.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Unpack

from launchyard.host.disk import writing_to
from launchyard.host.locks import LockedError, exclusive
from launchyard.model.text.companions import write_companions
from launchyard.storage import files
from launchyard.storage.files import normal, typed_path
from launchyard.training.data.chunks import Array
from launchyard.training.data.index import (
    DATASET,
    ENCODING,
    REJECTS,
    TOKENIZER,
    Dataset,
    HoldOut,
    OptionArguments,
    Options,
    SourceEntry,
    TokenizerEntry,
    dataset_digest,
    read_dataset,
)
from launchyard.training.data.prepare.encode import (
    PrepareError,
    TextBatch,
    control_tokens,
    encode_in_order,
    in_batches,
    open_tokenizer,
)
from launchyard.training.data.prepare.journal import (
    JOURNAL,
    JOURNAL_SECONDS,
    FinishedWork,
    PrepareJob,
    PrepareProgress,
    remove_journal,
    remove_unfinished,
)
from launchyard.training.data.prepare.sources import Reading, Reject, TextSource, digest_of, documents, find_sources
from launchyard.training.data.prepare.split import Splitter, TextPiece, choose_holdout, enough_documents
from launchyard.training.data.prepare.writer import SplitWriter, check_chunk_tokens

CHUNK_TOKENS = 2**25  # 64 MiB of uint16
BYTES_PER_WORKER = 32 << 20  # less does not pay for a process: the tokenizer has threads of its own


class KeptWorkError(ValueError):
    """A fault in the text, behind finished work that is kept."""


def prepare(
    sources: list[str],
    *,
    tokenizer: str,
    out: str,
    skip_invalid: bool = False,
    workers: int | None = None,
    on_progress: Callable[[PrepareProgress], None] | None = None,
    **given: Unpack[OptionArguments],
) -> Dataset:
    """Tokenize files, folders, globs and URLs into `out`, a local folder or URL. Returns its description.

    Finished work is not repeated; another data set in `out` is never overwritten. ValueError: the user's
    mistake, and `out` is left as it was, or KeptWorkError: part of the work is done. PrepareError: a process died.
    After the last two the same call goes on. With `skip_invalid`, rejects.jsonl lists the documents left out.
    """
    options = Options.model_validate({"chunk_tokens": CHUNK_TOKENS, "encoding": ENCODING, **given})
    if not 0 <= options.validation < 1:
        raise ValueError(f"validation is {options.validation}; a share must lie in [0, 1)")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 is needed")
    if options.seed < 0:
        raise ValueError(f"seed is {options.seed}; it must not be negative")
    made = open_tokenizer(typed_path(tokenizer), eos=options.eos, encoding=options.encoding)
    found = find_sources(list(map(typed_path, sources)))
    job = PrepareJob(found, made, normal(typed_path(out)), options, on_progress, skip_invalid)
    check_chunk_tokens(options.chunk_tokens, made.dtype)
    check_out(job.out)
    if (done := read_dataset(job.out)) is not None:
        return _same(job, done)
    existed = os.path.exists(job.out)
    with lock_out(job.out):
        try:
            return _prepare(job, workers or len(os.sched_getaffinity(0)))
        except KeptWorkError:
            raise
        except ValueError:
            remove_unfinished(job.out, remove_root=not existed)
            raise


# -- before ----------------------------------------------------------------------------------------------------------
def check_out(out: str) -> None:
    """`out` must be new, empty, or ours. ValueError otherwise."""
    if "://" in out or not os.path.exists(out):
        return
    if not os.path.isdir(out):
        raise ValueError(f"{out} is a file; --out names a folder")
    names = set(os.listdir(out))
    if names and not names & {DATASET, JOURNAL}:
        raise ValueError(f"{out} is not empty and holds no data set of ours; choose another --out")


def _same(job: PrepareJob, done: Dataset) -> Dataset:
    """Returns the data set that is already there if it is the requested one; ValueError names the differences."""
    requested = dict(zip(_names(job.sources), job.sources, strict=True))
    there = {entry.name: entry for entry in done.sources}
    faults = [f"{name} was not part of it" for name in requested if name not in there]
    faults += [f"{name} was part of it" for name in there if name not in requested]
    for key, value in done.options.model_dump(exclude={"encoding"}).items():
        if (now := getattr(job.options, key)) != value:
            faults.append(f"{key} was {value} and is {now} now")
    if done.tokenizer.sha256 != job.tokenizer.sha256:
        faults.append("it was made with another tokenizer")
    if done.rejected_documents and not job.skip_invalid:
        faults.append(f"{done.rejected_documents:,} invalid documents were left out of it by --skip-invalid")
    if not faults:
        faults = [f"{name} has changed" for name in requested if digest_of(requested[name]) != there[name].xxh3]
    if faults:
        raise ValueError(
            f"{job.out} holds another data set: {'; '.join(faults[:8])}; choose another --out, or remove it"
        )
    remove_journal(job.out)
    older = "" if done.options.encoding == job.options.encoding else ", where control tokens became control ids"
    job.report(done.tokens, note=f"{job.out} is already prepared from the same text{older}: nothing to do")
    return done


@contextlib.contextmanager
def lock_out(out: str) -> Iterator[None]:
    """One at a time on this machine's folders; the lock goes with its process."""
    if "://" in out:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(f"{out}/{JOURNAL}/lock", wait=False))
        except LockedError:
            raise PrepareError(
                f"another `launch prepare` is writing {out}; wait for it, or choose another --out"
            ) from None
        stack.enter_context(writing_to(out))
        yield


# -- the work --------------------------------------------------------------------------------------------------------
def _prepare(job: PrepareJob, workers: int) -> Dataset:
    holdout = holdout_of(job.sources, job.options, skip_invalid=job.skip_invalid)
    work = FinishedWork(job, holdout)
    work.restore()
    workers = min(workers, 1 + job.bytes_total // BYTES_PER_WORKER)
    splitter = Splitter(holdout, share=job.options.validation, seed=job.options.seed)
    faults: list[ValueError | OSError] = []
    batches = _until_fault(in_batches(_texts(job, splitter)), faults)
    for _ in range(work.batches):
        next(batches, None)
    saved = time.monotonic()
    at = work.chunks
    for batch, ids, lengths in encode_in_order(batches, job.tokenizer, workers=workers):
        work.begin(batch)
        _store(work.writers, batch.pieces, ids, lengths)
        if work.chunks > at or time.monotonic() - saved > JOURNAL_SECONDS:
            work.save()
            saved = time.monotonic()
            at = work.chunks
        job.report(work.tokens)
    if faults:
        raise _keep(work, faults[0]) from faults[0]
    return _finish(job, holdout, work.writers)


def _until_fault(batches: Iterator[TextBatch], faults: list[ValueError | OSError]) -> Iterator[TextBatch]:
    """Ends where the text cannot be read, so that the batches before it are finished first."""
    try:
        yield from batches
    except (ValueError, OSError) as error:
        faults.append(error)


def _keep(work: FinishedWork, fault: ValueError | OSError) -> Exception:
    """Returns the error to raise. The work before the fault is kept, if there is any."""
    if not work.batches:
        return fault
    work.save()
    if isinstance(fault, OSError):
        return fault
    return KeptWorkError(
        f"{fault}. The {work.tokens:,} tokens before it are kept: after the text is mended, the same command goes on "
        "from the first file that has changed; --skip-invalid leaves invalid documents out"
    )


def holdout_of(sources: list[TextSource], options: Options, *, skip_invalid: bool) -> HoldOut:
    """Returns the rule by which a part is held out. Counts documents, as far as it matters."""
    share = options.validation
    count = 0
    needed = enough_documents(share) if share else 0
    for source in sources:
        if count >= needed:
            break
        if source.kind == "text":
            count += 1
            continue
        for document in documents(Reading(source, skip_invalid), text_key=options.text_key):
            count += any(document)
            if count >= needed:
                break
    return choose_holdout(share, n_documents=count, total_bytes=sum(source.bytes for source in sources))


def _texts(job: PrepareJob, splitter: Splitter) -> Iterator[Iterator[TextPiece]]:
    """The pieces of each file. Use up one before the next."""
    for source in job.sources:
        reading = Reading(source, job.skip_invalid)
        job.readings.append(reading)
        yield _pieces(job, reading, splitter)


def _pieces(job: PrepareJob, reading: Reading, splitter: Splitter) -> Iterator[TextPiece]:
    control = control_tokens(job.tokenizer.raw) if job.options.encoding != 1 else None
    for document in documents(reading, text_key=job.options.text_key):
        empty = True
        for piece in splitter.pieces(document):
            empty = False
            if control is not None:
                job.control_tokens += sum(1 for _ in control.finditer(piece.text))
            yield piece
        job.empty_documents += empty


def _store(writers: dict[str, SplitWriter], pieces: list[TextPiece], ids: Array, lengths: list[int]) -> None:
    """Append pieces where they belong. A document ends where a part of it goes elsewhere, and begins anew after it."""
    start = 0
    for piece, length in zip(pieces, lengths, strict=True):
        here, elsewhere = ("validation", "train") if piece.held_out else ("train", "validation")
        writers[elsewhere].end_document()
        writers[here].add(ids[start : start + length])
        if piece.last:
            writers[here].end_document()
        start += length


def _finish(job: PrepareJob, holdout: HoldOut, writers: dict[str, SplitWriter]) -> Dataset:
    rejects = [reject for reading in job.readings for reject in reading.rejects]
    split_names = ["train"] if holdout.unit == "nothing" else ["train", "validation"]
    for split in split_names:
        if writers[split].n_tokens < 2:
            raise ValueError(
                f"the {split} part has {writers[split].n_tokens} tokens: there is too little text "
                f"({job.bytes_total} bytes in {len(job.sources)} files, validation {job.options.validation})"
                + (f"; {len(rejects):,} documents are invalid: {rejects[0].reason}" if rejects else "")
            )
    entries = {split: writers[split].finish() for split in split_names}
    made = job.tokenizer
    digests = {split: entry.digest for split, entry in entries.items()}
    dataset = Dataset(
        digest=dataset_digest(digests, made.sha256),
        tokenizer=TokenizerEntry(
            file=TOKENIZER, sha256=made.sha256, eos=made.eos, eos_id=made.eos_id, bos=made.bos, bos_id=made.bos_id
        ),
        vocab_size=made.vocab_size,
        dtype=made.dtype,
        documents=sum(reading.documents for reading in job.readings) - job.empty_documents,
        empty_documents=job.empty_documents,
        rejected_documents=len(rejects),
        control_tokens=job.control_tokens,
        tokens=sum(entry.tokens for entry in entries.values()),
        holdout=holdout,
        options=job.options,
        sources=_entries(job),
        splits=entries,
    )
    _write_rejects(f"{job.out}/{REJECTS}", rejects)
    write_companions(made.companions, f"{job.out}/{TOKENIZER}".rpartition("/")[0], sync=True)
    files.write(f"{job.out}/{DATASET}", dataset.model_dump_json(indent=1).encode() + b"\n", sync=True)
    remove_journal(job.out)
    job.report(dataset.tokens)
    return dataset


def _write_rejects(path: str, rejects: list[Reject]) -> None:
    if rejects:
        files.write(path, "".join(json.dumps(asdict(reject)) + "\n" for reject in rejects).encode(), sync=True)
    elif files.exists(path):
        files.remove(path)


def _entries(job: PrepareJob) -> list[SourceEntry]:
    names = _names(job.sources)
    return [
        SourceEntry(name=name, bytes=reading.bytes, documents=reading.documents, xxh3=reading.digest)
        for name, reading in zip(names, job.readings, strict=True)
    ]


def _names(sources: list[TextSource]) -> list[str]:
    """Names that stay when the sources move together: local ones relative to the folder they share."""
    local = [os.path.dirname(source.path) for source in sources if "://" not in source.path]
    shared = os.path.commonpath(local) if local else ""
    return [source.name if "://" in source.path else os.path.relpath(source.path, shared) for source in sources]
