"""A check of a folder of tokens: its documents or rows as they lie, nothing written.

Documents of a stream end with the end token; rows of instructions have lengths of their own. Knows no text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from launchyard.storage import files
from launchyard.storage.files import normal
from launchyard.training.data.check.findings import Alike, CorpusFindings, OccurrenceTally, RejectTally
from launchyard.training.data.check.lengths import LengthTally
from launchyard.training.data.check.repeats import EXACT_LIMIT, NEAR_LIMIT, CorpusPart, RepeatFinder
from launchyard.training.data.check.text import LINES, limits_of
from launchyard.training.data.chunks import Array
from launchyard.training.data.dataset_spec import open_dataset
from launchyard.training.data.index import REJECTS, Dataset, read_dataset
from launchyard.training.data.mixture import Ids
from launchyard.training.data.prepare.encode import TokenizerFile, open_tokenizer
from launchyard.training.data.prepare.sources import Reject
from launchyard.training.data.row_store import RowStore
from launchyard.training.data.token_store import ID_BITS, TokenStore

SHINGLE_TOKENS = 5
HEAD_TOKENS = 1 << 14  # of a document, from its beginning: what near duplicates are looked for by


@dataclass(frozen=True)
class TokenCheck:
    """What to look for. `tokenizer`: for chunks without one of their own; `seq_len`: a length not to be exceeded."""

    tokenizer: str | None = None
    seq_len: int | None = None
    near: bool = True
    exact_limit: int = EXACT_LIMIT
    near_limit: int = NEAR_LIMIT


def check_tokens(source: str, wanted: TokenCheck) -> CorpusFindings:
    """Reads every token of a folder. ValueError without a tokenizer; CorruptError for damaged chunks."""
    folder = normal(source)
    spec = open_dataset(folder)
    named = wanted.tokenizer or spec.tokenizer
    if named is None:
        raise ValueError(f"{folder} does not say which token ends a document; name its tokenizer with --tokenizer")
    dataset = read_dataset(folder)
    eos = dataset.tokenizer.eos if dataset is not None else None
    checker = _TokenChecker(wanted, open_tokenizer(named, eos=eos))
    for split, sources in (("train", spec.train), ("validation", spec.validation)):
        for one in sources:
            checker.read(one.folder, "validation" if split == "validation" else "train", rows=one.instruct is not None)
    return checker.findings(folder, dataset, held=bool(spec.validation))


class _TokenChecker:
    def __init__(self, wanted: TokenCheck, tokenizer: TokenizerFile) -> None:
        self._wanted = wanted
        self._eos = tokenizer.eos_id
        self._names = _control_ids(tokenizer)
        self._ids = np.array(sorted(self._names), np.int64)
        self._begin = tokenizer.bos_id
        self._repeats = RepeatFinder(near=wanted.near, exact_limit=wanted.exact_limit, near_limit=wanted.near_limit)
        self._lengths = LengthTally("tokens", limit=wanted.seq_len)
        self._control_tokens = OccurrenceTally()
        self._documents = Counter[str](train=0)
        self._folders: list[tuple[str, str]] = []  # and what a part of it is called

    def read(self, folder: str, split: CorpusPart, *, rows: bool) -> None:
        number = len(self._folders)
        self._folders.append((folder, "row" if rows else "document"))
        found = _rows(RowStore(folder)) if rows else _documents(TokenStore(folder), self._eos, self._ids)
        for at, one in enumerate(found):
            place = number << LINES | at
            self._documents[split] += 1
            self._lengths.add(one.length)
            if one.counted:
                self._control_tokens.add(self._control_in(one), self._place(place))
            self._repeats.add(place, split, digest=one.hash.intdigest(), shingles=_shingles(one.head))

    def _control_in(self, document: _Tokens) -> dict[str, int]:
        """Control tokens of a document by name; the one that begins every document is none."""
        counts = {self._names[int(id_)]: n for id_, n in document.counted.items()}
        if self._begin is not None and len(document.head) and int(document.head[0]) == self._begin:
            name = self._names.get(self._begin, "")
            counts = {what: n - (what == name) for what, n in counts.items()}
        return {what: n for what, n in counts.items() if n}

    def _place(self, place: int) -> str:
        folder, part = self._folders[place >> LINES]
        return f"{folder}, {part} {place & ((1 << LINES) - 1)}"

    def findings(self, folder: str, dataset: Dataset | None, *, held: bool) -> CorpusFindings:
        found = self._repeats.found
        return CorpusFindings(
            sources=[folder],
            kind="tokens" if dataset is None else dataset.kind,
            documents=dict(self._documents),
            empty=0 if dataset is None else dataset.empty_documents,
            rejects=_rejects(folder),
            duplicates_exact=found.exact,
            duplicates_near=found.near,
            overlap_exact=found.overlap_exact if held else None,
            overlap_near=found.overlap_near if held else None,
            alike=[Alike(self._place(a.place), self._place(a.like), a.similarity, a.crosses) for a in found.examples],
            lengths=[self._lengths.summary()],
            control_tokens=self._control_tokens.listed(),
            control_characters=[],
            limits=[
                *limits_of(self._repeats, near=self._wanted.near),
                "control characters are looked for in text alone: check the files that were prepared",
            ],
        )


class _Tokens:
    """One document, of which only its beginning is held."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self.hash = xxhash.xxh3_64()
        self.length = 0
        self.head: Array = np.empty(0, "<u4")
        self.counted = Counter[int]()

    def add(self, tokens: Array) -> None:
        plain = np.ascontiguousarray(tokens, dtype="<u4")
        self.hash.update(plain.data)
        self.length += len(plain)
        if len(self.head) < HEAD_TOKENS:
            self.head = np.concatenate([self.head, plain[: HEAD_TOKENS - len(self.head)]])
        self.counted.update(plain[np.isin(plain, self._ids)].tolist())


def _documents(store: TokenStore, eos: int, ids: Ids) -> Iterator[_Tokens]:
    """The documents of a stream without the token that ends them; the last may have none. Empty ones are none."""
    document = _Tokens(ids)
    for number in range(len(store.chunks)):
        tokens = store.chunk(number)
        start = 0
        for end in np.flatnonzero(tokens == eos).tolist():
            document.add(tokens[start:end])
            if document.length:
                yield document
            document = _Tokens(ids)
            start = end + 1
        document.add(tokens[start:])
    if document.length:
        yield document


def _rows(store: RowStore) -> Iterator[_Tokens]:
    """Control tokens belong into rows, so none are counted."""
    for number in range(len(store.lengths)):
        row = _Tokens(np.empty(0, np.int64))
        row.add(store.marked(number) & np.uint32(ID_BITS))
        yield row


def _shingles(tokens: Array) -> set[bytes]:
    if len(tokens) <= SHINGLE_TOKENS:
        return {tokens.tobytes()}
    return {run.tobytes() for run in np.lib.stride_tricks.sliding_window_view(tokens, SHINGLE_TOKENS)}


def _control_ids(tokenizer: TokenizerFile) -> dict[int, str]:
    """Names of control tokens but the end of a document."""
    added = json.loads(tokenizer.raw).get("added_tokens") or []
    return {one["id"]: one["content"] for one in added if one.get("special") and one["id"] != tokenizer.eos_id}


def _rejects(folder: str) -> RejectTally:
    """Those that `launch prepare --skip-invalid` has left out."""
    tally = RejectTally()
    path = f"{folder}/{REJECTS}"
    if files.exists(path):
        for line in files.read(path).splitlines():
            tally.add([Reject(**json.loads(line))])
    return tally
