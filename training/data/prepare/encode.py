"""Text to token ids, in order, in this process or in several. Knows no files of text and no chunks."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from launchyard.model.text.companions import TOKENIZER, TOKENIZER_CONFIG, Companions
from launchyard.model.text.find import read_tokenizer_files
from launchyard.model.text.special_tokens import END_OF_TEXT, end_of_text, named_end, tokenizer_vocab_size
from launchyard.training.data.chunks import Array
from launchyard.training.data.index import ENCODING, Encoding, find_tokenizer
from launchyard.training.data.prepare.split import TextPiece

BATCH_CHARS = 1 << 20
BATCH_PIECES = 8192
FILES_BEGIN_NEW = 1 / 16  # of a batch; a batch with less in it goes on into the next file


class PrepareError(RuntimeError):
    """Preparing failed through no fault of the input. Running it again goes on where it was."""


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer.json, what lay beside it, and facts derived from it."""

    companions: Companions
    sha256: str
    eos: str
    eos_id: int
    vocab_size: int
    encoding: Encoding = ENCODING
    bos: str | None = None
    bos_id: int | None = None

    @property
    def raw(self) -> bytes:
        return self.companions[TOKENIZER]

    @property
    def dtype(self) -> Literal["uint16", "int32"]:
        return "uint16" if self.vocab_size <= 2**16 else "int32"


def open_tokenizer(tokenizer: str, *, eos: str | None, encoding: Encoding = ENCODING) -> TokenizerFile:
    """ValueError if it cannot be read, or if no file names the token that ends a document."""
    path = find_tokenizer(tokenizer)
    companions = read_tokenizer_files(path)
    raw = companions[TOKENIZER]
    vocab_size = tokenizer_vocab_size(raw, name=path)
    engine = _engine(raw, path, encoding)
    chosen = eos if eos is not None else end_of_text(companions, engine)
    if eos is None and (named := named_end(companions)) is not None and engine.token_to_id(named) is None:
        raise ValueError(
            f"{TOKENIZER_CONFIG} beside {path} names {named!r} as its eos_token, which is none of its "
            "tokens; mend it, or name the token that ends a document with --eos"
        )
    if chosen is None:
        raise ValueError(
            f"{path} does not say which token ends a document: no eos_token of a tokenizer_config.json beside it and "
            f"none of {' '.join(END_OF_TEXT)} is in it; name one with --eos"
        )
    eos_id = engine.token_to_id(chosen)
    if eos_id is None:
        raise ValueError(f"--eos {chosen!r} is no token of {path}; name one of its tokens, such as <|endoftext|>")
    made = TokenizerFile(companions, hashlib.sha256(raw).hexdigest(), chosen, int(eos_id), vocab_size, encoding)
    plain = engine.encode("a", add_special_tokens=False).ids
    whole = engine.encode("a", add_special_tokens=True).ids  # as its own post-processor has it
    bos_id = next(iter(whole), made.eos_id)
    if encoding == 1 or bos_id in (*plain[:1], made.eos_id):  # then the end of a document begins the next one, too
        return made
    return replace(made, bos=engine.id_to_token(bos_id), bos_id=int(bos_id))


def control_tokens(raw: bytes) -> re.Pattern[str] | None:
    """Returns a pattern of the control tokens of a tokenizer.json as they are written; None if it has none."""
    added = json.loads(raw).get("added_tokens") or []
    names = sorted((token["content"] for token in added if token.get("special")), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None


def token_counter(tokenizer: TokenizerFile) -> Callable[[list[str]], list[int]]:
    """Counts the tokens of each text, as `launch prepare` makes them; without those that begin and end a document."""
    engine = _engine(tokenizer.raw, "the tokenizer", tokenizer.encoding)
    return lambda texts: [len(one.ids) for one in engine.encode_batch_fast(texts, add_special_tokens=False)]


def _engine(raw: bytes, name: str, encoding: Encoding) -> Any:
    from tokenizers import Tokenizer

    try:
        engine = Tokenizer.from_str(raw.decode())
    except Exception as error:  # the package raises bare Exceptions
        raise ValueError(f"{name} is no tokenizer.json that the tokenizers package can read: {error}") from error
    engine.no_truncation()  # either would silently change the text
    engine.no_padding()
    engine.encode_special_tokens = encoding != 1
    return engine


def _encode(engine: Any, texts: list[str], dtype: str) -> tuple[Array, list[int]]:
    """Ids of all texts end to end, and how many each has."""
    parts = [encoding.ids for encoding in engine.encode_batch_fast(texts, add_special_tokens=False)]
    lengths = [len(part) for part in parts]
    ids = np.empty(sum(lengths), dtype=dtype)
    start = 0
    for part in parts:
        ids[start : start + len(part)] = part
        start += len(part)
    return ids, lengths


@dataclass(frozen=True)
class TextBatch:
    """Pieces worth one call, out of the first `files` files.

    `complete_files` of them came before it, if it begins where a file begins.
    """

    pieces: list[TextPiece]
    files: int
    complete_files: int | None

    @property
    def texts(self) -> list[str]:
        return [piece.text for piece in self.pieces]


def in_batches(texts: Iterable[Iterable[TextPiece]]) -> Iterator[TextBatch]:
    """The pieces of each file in groups. The cuts follow from the text alone: a restart counts them."""
    pieces: list[TextPiece] = []
    chars = 0
    count = 0
    complete: int | None = None
    for count, text in enumerate(texts, start=1):
        begun = False
        for piece in text:
            if not pieces:
                complete = None if begun else count - 1
            begun = True
            pieces.append(piece)
            chars += len(piece.text)
            if chars >= BATCH_CHARS or len(pieces) >= BATCH_PIECES:
                yield TextBatch(pieces, count, complete)
                pieces = []
                chars = 0
        if chars >= BATCH_CHARS * FILES_BEGIN_NEW or len(pieces) >= BATCH_PIECES * FILES_BEGIN_NEW:
            yield TextBatch(pieces, count, complete)
            pieces = []
            chars = 0
    if pieces:
        yield TextBatch(pieces, count, complete)


Encoded = tuple[TextBatch, Array, list[int]]


def encode_in_order(batches: Iterator[TextBatch], tokenizer: TokenizerFile, *, workers: int) -> Iterator[Encoded]:
    """Each batch with its ids (all pieces end to end) and their lengths, in order for any number of workers."""
    yield from (_in_processes if workers > 1 else _in_a_thread)(batches, tokenizer, workers)


def _in_a_thread(batches: Iterator[TextBatch], tokenizer: TokenizerFile, _: int) -> Iterator[Encoded]:
    """While a batch is encoded, by a thread for each core, the caller reads the next one and writes the one before."""
    engine = _engine(tokenizer.raw, "the tokenizer", tokenizer.encoding)
    with ThreadPoolExecutor(1) as pool:
        running: tuple[TextBatch, Future[tuple[Array, list[int]]]] | None = None
        for batch in batches:
            before = running
            running = (batch, pool.submit(_encode, engine, batch.texts, tokenizer.dtype))
            if before:
                yield before[0], *before[1].result()
        if running:
            yield running[0], *running[1].result()


def _in_processes(batches: Iterator[TextBatch], tokenizer: TokenizerFile, workers: int) -> Iterator[Encoded]:
    # spawn: a fork would copy the locks of whatever threads run here
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer.raw, tokenizer.dtype, tokenizer.encoding),
    )
    running: deque[tuple[TextBatch, Future[tuple[bytes, list[int]]]]] = deque()
    try:
        for batch in batches:
            running.append((batch, pool.submit(_encode_in_worker, batch.texts)))
            if len(running) > 2 * workers:
                yield _result(*running.popleft(), tokenizer)
        while running:
            yield _result(*running.popleft(), tokenizer)
    except BrokenProcessPool as error:
        raise PrepareError(
            "a tokenizing process died (killed, or out of memory?); nothing was lost: run the same command again, "
            "perhaps with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(batch: TextBatch, future: Future[tuple[bytes, list[int]]], tokenizer: TokenizerFile) -> Encoded:
    raw, lengths = future.result()
    return batch, np.frombuffer(raw, dtype=tokenizer.dtype), lengths


_of_worker: tuple[Any, str]


def _start_worker(raw: bytes, dtype: str, encoding: Encoding) -> None:
    global _of_worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.putenv("TOKENIZERS_PARALLELISM", "false")  # one thread a process: there are enough processes
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _of_worker = _engine(raw, "the tokenizer", encoding), dtype


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(texts: list[str]) -> tuple[bytes, list[int]]:
    ids, lengths = _encode(*_of_worker[:1], texts, _of_worker[1])
    return ids.tobytes(), lengths
