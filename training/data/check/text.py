"""A check of files of text as `launch prepare` would read them: every document once, in pieces, nothing written.

Knows no prepared folders (training/data/check/tokens.py does).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import xxhash

from launchyard.training.data.check.findings import Alike, CorpusFindings, OccurrenceTally, RejectTally
from launchyard.training.data.check.lengths import LengthSummary, LengthTally
from launchyard.training.data.check.repeats import EXACT_LIMIT, NEAR_LIMIT, CorpusPart, RepeatFinder
from launchyard.training.data.index import HoldOut, Options
from launchyard.training.data.prepare.encode import TokenizerFile, control_tokens, token_counter
from launchyard.training.data.prepare.journal import PrepareProgress
from launchyard.training.data.prepare.prepare import CHUNK_TOKENS, holdout_of
from launchyard.training.data.prepare.sources import Reading, Reject, TextSource, documents, find_sources
from launchyard.training.data.prepare.split import Splitter, TextPiece

SHINGLE_WORDS = 5
SHINGLE_CHARS = 1 << 16  # of a document, from its beginning: what near duplicates are looked for by
ENCODED_CHARS = 1 << 20  # encoded at once
SIGNS = {
    "NUL": "\0",
    "control character": "\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f",
    "U+FFFD, of bytes that were no text": "\ufffd",
    "sign that turns the direction of text": "\u202a-\u202e\u2066-\u2069",
    "byte order mark inside": "\ufeff",
}
_SIGNS = {what: re.compile(f"[{signs}]") for what, signs in SIGNS.items()}
_ANY_SIGN = re.compile(f"[{''.join(SIGNS.values())}]")
LINES = 40  # bits of a place that hold the line


@dataclass(frozen=True, kw_only=True)
class SourceCheck:
    """What to look for in any source. `against`: more sources, which are held out."""

    validation: float = 0.0
    seed: int = 0
    against: tuple[str, ...] = ()
    near: bool = True
    exact_limit: int = EXACT_LIMIT
    near_limit: int = NEAR_LIMIT


@dataclass(frozen=True, kw_only=True)
class TextCheck(SourceCheck):
    """The same in text. `seq_len`: a length not to be exceeded."""

    text_key: str = "text"
    seq_len: int | None = None


def check_text(
    sources: list[str],
    wanted: TextCheck,
    *,
    tokenizer: TokenizerFile | None = None,
    on_progress: Callable[[PrepareProgress], None] = lambda _: None,
) -> CorpusFindings:
    """Reads every document of files, folders, globs and URLs. ValueError for sources that are not there."""
    return _TextChecker(sources, wanted, tokenizer, on_progress).run()


class _TextChecker:
    def __init__(
        self,
        sources: list[str],
        wanted: TextCheck,
        tokenizer: TokenizerFile | None,
        on_progress: Callable[[PrepareProgress], None],
    ) -> None:
        self._wanted = wanted
        self._trained = find_sources(sources)
        held = find_sources(list(wanted.against)) if wanted.against else []
        self._sources = [*self._trained, *held]
        self._bytes_total = sum(source.bytes for source in self._sources)
        self._repeats = RepeatFinder(near=wanted.near, exact_limit=wanted.exact_limit, near_limit=wanted.near_limit)
        self._in_bytes = LengthTally("bytes")
        self._tokens = None if tokenizer is None else _TokenLengths(tokenizer, wanted.seq_len)
        self._control = None if tokenizer is None else control_tokens(tokenizer.raw)
        self._control_tokens = OccurrenceTally()
        self._signs = OccurrenceTally()
        self._rejects = RejectTally()
        self._documents = Counter[str](train=0)
        self._empty = 0
        self._on_progress = on_progress
        self._began = time.monotonic()
        self._bytes = 0

    def run(self) -> CorpusFindings:
        holdout = self._holdout()
        splitter = Splitter(holdout, share=self._wanted.validation, seed=self._wanted.seed)
        for number, source in enumerate(self._sources):
            self._source(number, source, splitter if number < len(self._trained) else None)
        return self._findings(holdout)

    def _holdout(self) -> HoldOut:
        options = Options(chunk_tokens=CHUNK_TOKENS, validation=self._wanted.validation, text_key=self._wanted.text_key)
        return holdout_of(self._trained, options, skip_invalid=True)

    def _source(self, number: int, source: TextSource, splitter: Splitter | None) -> None:
        reading = Reading(source, skip_invalid=True)
        try:
            for document in documents(reading, text_key=self._wanted.text_key):
                self._rejects.add(reading.rejects)
                self._document(number << LINES | (reading.line or 0), _pieces(document, splitter))
                self._report(reading.bytes)
        except (ValueError, OSError) as error:  # a file that is cut or damaged: what comes after it counts, too
            self._rejects.add([Reject(source.name, None, str(error).removeprefix(f"{source.name} "))])
        self._rejects.add(reading.rejects)
        self._bytes += source.bytes

    def _document(self, place: int, pieces: Iterator[TextPiece]) -> None:
        digest = xxhash.xxh3_64()
        n_bytes = 0
        head = ""
        signs = Counter[str]()
        tokens = Counter[str]()
        split: CorpusPart = "train"
        for piece in pieces:
            raw = piece.text.encode()
            digest.update(raw)
            n_bytes += len(raw)
            head += piece.text[: SHINGLE_CHARS - len(head)]
            split = "validation" if piece.held_out else "train"
            signs.update(signs_of(piece.text))
            if self._control is not None:
                tokens.update(self._control.findall(piece.text))
            if self._tokens is not None:
                self._tokens.add(piece)
        if not n_bytes:
            self._empty += 1
            return
        self._documents[split] += 1
        self._in_bytes.add(n_bytes)
        if signs or tokens:
            self._signs.add(signs, self._place(place))
            self._control_tokens.add(tokens, self._place(place))
        self._repeats.add(place, split, digest=digest.intdigest(), shingles=shingles_of(head))

    def _place(self, place: int) -> str:
        return self._sources[place >> LINES].place(place & ((1 << LINES) - 1) or None)

    def _report(self, done: int) -> None:
        now = PrepareProgress(
            bytes_done=self._bytes + done,
            bytes_total=self._bytes_total,
            documents=self._documents.total(),
            tokens=0,
            seconds=time.monotonic() - self._began,
        )
        self._on_progress(now)

    def _findings(self, holdout: HoldOut) -> CorpusFindings:
        found = self._repeats.found
        held = bool(self._wanted.against) or holdout.unit == "documents"
        lengths = [self._in_bytes.summary()]
        if self._tokens is not None:
            lengths = [self._tokens.summary(), *lengths]
        return CorpusFindings(
            sources=[source.name for source in self._sources],
            kind="text",
            documents=dict(self._documents),
            empty=self._empty,
            rejects=self._rejects,
            duplicates_exact=found.exact,
            duplicates_near=found.near,
            overlap_exact=found.overlap_exact if held else None,
            overlap_near=found.overlap_near if held else None,
            alike=[Alike(self._place(a.place), self._place(a.like), a.similarity, a.crosses) for a in found.examples],
            lengths=lengths,
            control_tokens=self._control_tokens.listed(),
            control_characters=self._signs.listed(),
            limits=[*limits_of(self._repeats, near=self._wanted.near), *self._not_looked_for(holdout)],
        )

    def _not_looked_for(self, holdout: HoldOut) -> Iterator[str]:
        if self._wanted.near:
            yield f"near duplicates are told by the first {SHINGLE_CHARS:,} characters of a document"
        if holdout.unit == "sections":
            yield "too few documents to hold whole ones out: sections of them are, which are not compared"
        if self._tokens is None:
            yield "no tokenizer was named (--tokenizer): lengths are in bytes, and control tokens are not looked for"


def _pieces(document: Iterable[str], splitter: Splitter | None) -> Iterator[TextPiece]:
    if splitter is not None:
        return splitter.pieces(document)
    nothing = Splitter(HoldOut(unit="nothing"), share=0.0, seed=0)
    return (TextPiece(piece.text, piece.last, True) for piece in nothing.pieces(document))


def signs_of(text: str) -> dict[str, int]:
    """Control characters and their like in a text; line ends and tabs are none."""
    if not _ANY_SIGN.search(text):
        return {}
    counts = {what: len(pattern.findall(text)) for what, pattern in _SIGNS.items()}
    return {what: n for what, n in counts.items() if n}


def shingles_of(text: str) -> set[bytes]:
    """Runs of a few words, whatever their case and the space between them."""
    words = text.lower().split()
    runs = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return {" ".join(words[start : start + SHINGLE_WORDS]).encode() for start in runs}


def limits_of(repeats: RepeatFinder, *, near: bool) -> Iterator[str]:
    """What its bounds have kept a search for repeats from seeing."""
    found = repeats.found
    if found.not_remembered_exact:
        yield f"{found.not_remembered_exact:,} documents were compared with earlier ones, and later ones not with them"
    if found.not_remembered_near:
        yield f"the same of near duplicates: {found.not_remembered_near:,} documents are not remembered"
    if not near:
        yield "near duplicates are not looked for (--no-near)"


class _TokenLengths:
    """Lengths in tokens, encoded many pieces at a time."""

    def __init__(self, tokenizer: TokenizerFile, limit: int | None) -> None:
        self._count = token_counter(tokenizer)
        self._tally = LengthTally("tokens", limit=limit)
        self._waiting: list[TextPiece] = []
        self._chars = 0
        self._length = 0  # of a document whose last piece has not come

    def add(self, piece: TextPiece) -> None:
        self._waiting.append(piece)
        self._chars += len(piece.text)
        if self._chars >= ENCODED_CHARS:
            self._encode()

    def summary(self) -> LengthSummary:
        self._encode()
        return self._tally.summary()

    def _encode(self) -> None:
        counts = self._count([piece.text for piece in self._waiting])
        for piece, n in zip(self._waiting, counts, strict=True):
            self._length += n
            if piece.last:
                self._tally.add(self._length)
                self._length = 0
        self._waiting.clear()
        self._chars = 0
