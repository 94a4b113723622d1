"""A check of conversations, or of pairs of answers, as `launch prepare --kind` would read them; nothing written.

A document is what its turns say. With a tokenizer it is also made a row, of any length. Knows no prepared folders.
"""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from launchyard.training.data.check.findings import Alike, CorpusFindings, OccurrenceTally, RejectTally
from launchyard.training.data.check.lengths import LengthTally
from launchyard.training.data.check.repeats import CorpusPart, RepeatFinder
from launchyard.training.data.check.text import SHINGLE_CHARS, SourceCheck, limits_of, shingles_of, signs_of
from launchyard.training.data.instruct.carriers import FaultyRowError, Record, find_files, read_records
from launchyard.training.data.instruct.conversation import Conversation, Pair, Turn
from launchyard.training.data.instruct.shapes import check_names, conversation_of, pair_of
from launchyard.training.data.prepare.encode import control_tokens, open_tokenizer
from launchyard.training.data.prepare.rows import RowGroup, held_out
from launchyard.training.data.prepare.sources import Reject

if TYPE_CHECKING:
    from launchyard.training.data.index import RowOptions
    from launchyard.training.data.instruct.render import Renderer


@dataclass(frozen=True, kw_only=True)
class RowCheck(SourceCheck):
    """What to look for in conversations and pairs. `limit`: of the tokens of a row."""

    options: RowOptions
    limit: int | None = None


def check_conversations(
    sources: list[str],
    wanted: RowCheck,
    *,
    tokenizer: str | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> CorpusFindings:
    """Reads every row of files, folders, globs and URLs. on_progress: gets the number of rows so far.

    ValueError for sources that are not there, and for a tokenizer without a chat template where no style is named.
    """
    if wanted.validation and tokenizer is None:
        raise ValueError("rows are held out by their tokens, and no tokenizer is named: --tokenizer FILE")
    check_names(wanted.options.columns)
    return _RowChecker(sources, wanted, tokenizer, on_progress).run()


@dataclass(frozen=True)
class _Document:
    """One row of a file as text, and the rows of tokens made of it, if it was encoded."""

    where: str
    text: str
    digest: int
    rows: RowGroup = ()


class _RowChecker:
    def __init__(
        self, sources: list[str], wanted: RowCheck, tokenizer: str | None, on_progress: Callable[[int], None]
    ) -> None:
        self._sources = [*sources, *wanted.against]
        self._wanted = wanted
        self._trained = find_files(sources)
        apart = find_files(sources, "validation") if not wanted.validation else []
        self._held = [*apart, *(find_files(wanted.against) if wanted.against else [])]
        self._renderer, self._control = _encoding(wanted.options, tokenizer)
        self._repeats = RepeatFinder(near=wanted.near, exact_limit=wanted.exact_limit, near_limit=wanted.near_limit)
        self._in_bytes = LengthTally("bytes")
        self._in_tokens = LengthTally("tokens", limit=wanted.limit and wanted.limit + 1)
        self._signs = OccurrenceTally()
        self._control_tokens = OccurrenceTally()
        self._rejects = RejectTally()
        self._documents = Counter[str](train=0)
        self._places: list[str] = []
        self._empty = 0
        self._seen = 0
        self._on_progress = on_progress

    def run(self) -> CorpusFindings:
        trained = self._split(self._read(self._trained)) if self._wanted.validation else self._all_train()
        for document, out in trained:
            self._count(document, "validation" if out else "train")
        for document in self._read(self._held):
            self._count(document, "validation")
        return self._findings()

    def _all_train(self) -> Iterator[tuple[_Document, bool]]:
        return ((document, False) for document in self._read(self._trained))

    def _split(self, documents: Iterator[_Document]) -> Iterator[tuple[_Document, bool]]:
        """Each document, and True if its rows would be held out."""
        waiting: deque[_Document] = deque()

        def rows() -> Iterator[RowGroup]:
            for document in documents:
                waiting.append(document)
                yield document.rows

        for _, out in held_out(rows(), share=self._wanted.validation, seed=self._wanted.seed):
            yield waiting.popleft(), out

    # -- read ----------------------------------------------------------------------------------------------------
    def _read(self, paths: Sequence[str]) -> Iterator[_Document]:
        """The documents of files that are whole, are not empty and would give rows."""
        for path in paths:
            try:
                for record in read_records(path):
                    self._seen += 1
                    self._on_progress(self._seen)
                    try:
                        if isinstance(record, FaultyRowError):
                            raise record
                        given = self._made(record)
                    except (ValueError, TypeError, RecursionError) as error:
                        self._reject(error, "" if isinstance(record, FaultyRowError) else record.where)
                        continue
                    yield from self._document(given)
            except (ValueError, OSError) as error:  # a file that is damaged: what comes after it counts, too
                self._reject(error, path)

    def _reject(self, error: Exception, where: str) -> None:
        where, reason = (where, str(error)) if where else _apart(str(error))
        self._rejects.add([Reject(where, None, reason.removeprefix(f"{where} "))])

    def _made(self, record: Record) -> Conversation | Pair:
        options = self._wanted.options
        if options.kind == "preference":
            return pair_of(record, options.columns)
        return conversation_of(record, options.columns)

    def _document(self, given: Conversation | Pair) -> Iterator[_Document]:
        sides = [given.chosen, given.rejected] if isinstance(given, Pair) else [given]
        text = "\n".join(filter(None, map(_said, sides)))
        if not text.strip():
            self._empty += 1
            return
        digest = xxhash.xxh3_64_intdigest(json.dumps([_facts(side) for side in sides]).encode())
        rows = self._rows(given)
        if rows is not None:
            yield _Document(given.where, text, digest, rows)

    def _rows(self, given: Conversation | Pair) -> RowGroup | None:
        """None if it would give none, which its renderer counts."""
        if self._renderer is None:
            return ()
        if isinstance(given, Pair):
            return self._renderer.pair(given)
        row = self._renderer.row(given)
        return None if row is None else (row,)

    # -- count ---------------------------------------------------------------------------------------------------
    def _count(self, document: _Document, split: CorpusPart) -> None:
        place = len(self._places)
        self._places.append(document.where)
        self._documents[split] += 1
        self._in_bytes.add(len(document.text.encode()))
        if document.rows:  # of a pair both together, each of whose last tokens is a label alone
            self._in_tokens.add(sum(len(row.ids) for row in document.rows) - len(document.rows) + 1)
        self._signs.add(signs_of(document.text), document.where)
        if self._control is not None:
            self._control_tokens.add(Counter(self._control.findall(document.text)), document.where)
        head = document.text[:SHINGLE_CHARS]
        self._repeats.add(place, split, digest=document.digest, shingles=shingles_of(head))

    def _findings(self) -> CorpusFindings:
        found = self._repeats.found
        held = bool(self._documents["validation"])
        tokens = [self._in_tokens.summary()] if self._renderer is not None else []
        return CorpusFindings(
            sources=self._sources,
            kind=self._wanted.options.kind,
            documents={name: n for name, n in self._documents.items() if n or name == "train"},
            empty=self._empty,
            rejects=self._rejects,
            duplicates_exact=found.exact,
            duplicates_near=found.near,
            overlap_exact=found.overlap_exact if held else None,
            overlap_near=found.overlap_near if held else None,
            alike=[Alike(self._places[a.place], self._places[a.like], a.similarity, a.crosses) for a in found.examples],
            lengths=[*tokens, self._in_bytes.summary()],
            control_tokens=self._control_tokens.listed(),
            control_characters=self._signs.listed(),
            limits=[*limits_of(self._repeats, near=self._wanted.near), *self._not_looked_for()],
            dropped={} if self._renderer is None else dict(self._renderer.dropped),
            of_rows={} if self._renderer is None else dict(self._renderer.counts),
        )

    def _not_looked_for(self) -> Iterator[str]:
        if self._wanted.near:
            yield f"near duplicates are told by the first {SHINGLE_CHARS:,} characters of what is said"
        if self._renderer is None:
            yield (
                "no tokenizer was named (--tokenizer): lengths are in bytes, and neither control tokens nor what a "
                "chat template refuses are looked for"
            )


def _encoding(options: RowOptions, tokenizer: str | None) -> tuple[Renderer | None, re.Pattern[str] | None]:
    """What makes rows of any length, and the pattern of the tokenizer's control tokens."""
    if tokenizer is None:
        return None, None
    from launchyard.model.text.tokenizer import Tokenizer
    from launchyard.training.data.instruct.render import Renderer

    made = open_tokenizer(tokenizer, eos=None)
    renderer = Renderer(
        Tokenizer(tokenizer, made.companions),
        style=options.style,
        template=options.template,
        mask_prompt=options.mask_prompt,
    )
    return renderer, control_tokens(made.raw)


def _said(conversation: Conversation) -> str:
    """What its turns say, one after the other."""
    parts = (part for turn in conversation.turns for part in (turn.content, turn.input, _calls(turn)))
    return "\n".join(filter(None, parts))


def _calls(turn: Turn) -> str:
    return json.dumps(turn.tool_calls, ensure_ascii=False) if turn.tool_calls else ""


def _facts(conversation: Conversation) -> list[object]:
    """Two with equal ones are the same, whatever file and shape they came in."""
    turns = [[turn.role, turn.name, turn.content, turn.input, turn.tool_calls] for turn in conversation.turns]
    return [turns, conversation.tools]


def _apart(text: str) -> tuple[str, str]:
    """Place and reason of a faulty row's message."""
    where, _, reason = text.partition(": ")
    return (where, reason) if reason else ("", text)
