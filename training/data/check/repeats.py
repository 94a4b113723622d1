"""Documents that are there twice, word for word or nearly, and those of a held-out part that are trained on as well.

Equal ones by a hash; near ones by MinHash over shingles (Broder 1997) of the package rensa, an estimate of how much two
sets of shingles share. Memory is bounded: beyond the limits documents are compared with those before, not remembered.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from launchyard.host.packages import install_command

CorpusPart = Literal["train", "validation"]
EXACT_LIMIT = 5_000_000  # documents whose hash is remembered; about 130 bytes each
NEAR_LIMIT = 200_000  # documents whose sketch is remembered; about 1.5 kB each
SIMILAR = 0.8  # of all shingles of two documents, the share that both have
PERMUTATIONS = 128
BANDS = 16  # of 8 values: two documents that share 0.8 meet in one with a probability of 0.95
MAX_EXAMPLES = 20


@dataclass(frozen=True)
class Repeat:
    """One document that is like another; 1.0: word for word. Places are numbers, which the caller has given."""

    place: int
    like: int
    similarity: float
    crosses: bool  # the one is held out, the other is trained on


@dataclass
class Repeats:
    """Counts of documents. `exact`, `near`: after the first one of their kind, inside a part."""

    exact: int = 0
    near: int | None = 0  # None: not looked for
    overlap_exact: int = 0  # held-out documents that are trained on word for word
    overlap_near: int | None = 0
    not_remembered_exact: int = 0
    not_remembered_near: int = 0
    examples: list[Repeat] = field(default_factory=list)


class RepeatFinder:
    """Takes documents one by one. ValueError without the package that near ones need."""

    def __init__(self, *, near: bool, exact_limit: int = EXACT_LIMIT, near_limit: int = NEAR_LIMIT) -> None:
        self.found = Repeats() if near else Repeats(near=None, overlap_near=None)
        self._exact_limit = exact_limit
        self._first: dict[CorpusPart, dict[int, int]] = {"train": {}, "validation": {}}
        self._held: Counter[int] = Counter()  # held-out documents by hash
        self._sketches = _Sketches(near_limit) if near else None
        self._near_held: set[int] = set()

    def add(self, place: int, split: CorpusPart, *, digest: int, shingles: Iterable[bytes]) -> None:
        other: CorpusPart = "validation" if split == "train" else "train"
        before = self._first[split].get(digest)
        across = self._first[other].get(digest)
        if before is not None:
            self.found.exact += 1
            self._example(Repeat(place, before, 1.0, False))
        elif across is not None:
            self._example(Repeat(place, across, 1.0, True))
        self._count_overlap(split, digest, seen=before is not None, across=across is not None)
        if before is None:
            self._remember(place, split, digest)
        if before is None and across is None and self._sketches is not None:
            self._add_near(place, split, shingles)

    def _count_overlap(self, split: CorpusPart, digest: int, *, seen: bool, across: bool) -> None:
        if split == "validation":
            self._held[digest] += 1
            self.found.overlap_exact += across
        elif not seen and across:
            self.found.overlap_exact += self._held[digest]

    def _remember(self, place: int, split: CorpusPart, digest: int) -> None:
        if sum(map(len, self._first.values())) < self._exact_limit:
            self._first[split][digest] = place
        else:
            self.found.not_remembered_exact += 1

    def _add_near(self, place: int, split: CorpusPart, shingles: Iterable[bytes]) -> None:
        sketches = self._sketches
        assert sketches is not None and self.found.near is not None
        alike = sketches.alike(shingles)
        mine = [one for one in alike if one.split == split]
        others = [one for one in alike if one.split != split]
        self.found.near += bool(mine)
        self._near_held |= {place} if others and split == "validation" else {one.place for one in others}
        self.found.overlap_near = len(self._near_held)
        for best in (mine[:1], others[:1]):
            for one in best:
                self._example(Repeat(place, one.place, round(one.similarity, 2), one.split != split))
        if not sketches.remember(place, split):
            self.found.not_remembered_near += 1

    def _example(self, repeat: Repeat) -> None:
        if len(self.found.examples) < MAX_EXAMPLES:
            self.found.examples.append(repeat)


@dataclass(frozen=True)
class _Alike:
    place: int
    split: CorpusPart
    similarity: float


class _Sketches:
    """MinHash sketches, and which of them are alike."""

    def __init__(self, limit: int) -> None:
        try:
            import rensa
        except ModuleNotFoundError as error:
            raise ValueError(
                f"near duplicates need the package rensa: {install_command('data')}; --no-near leaves them out"
            ) from error
        self._new = rensa.RMinHash
        self._index = rensa.RMinHashLSH(threshold=SIMILAR, num_perm=PERMUTATIONS, num_bands=BANDS)
        self._limit = limit
        self._kept: list[Any] = []
        self._places = array("Q")
        self._held = bytearray()
        self._last: Any = None

    def alike(self, shingles: Iterable[bytes]) -> list[_Alike]:
        """The remembered documents that this one is like, most alike first."""
        self._last = self._new(num_perm=PERMUTATIONS, seed=1)
        self._last.update(list(shingles))
        scored = [(self._last.jaccard(self._kept[key]), key) for key in self._index.query(self._last)]
        return [
            _Alike(self._places[key], "validation" if self._held[key] else "train", score)
            for score, key in sorted(scored, reverse=True)
            if score >= SIMILAR
        ]

    def remember(self, place: int, split: CorpusPart) -> bool:
        """Keeps the last one. Returns False if there is no room for it."""
        if len(self._kept) >= self._limit:
            return False
        self._index.insert(len(self._kept), self._last)
        self._kept.append(self._last)
        self._places.append(place)
        self._held.append(split == "validation")
        return True
