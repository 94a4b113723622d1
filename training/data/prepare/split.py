"""Text cut into pieces, some of them held out for validation. Knows no files and no tokens.

With many documents the hold-out goes by document: one is held out when a hash of the seed and of its text (its first
MiB, if longer) falls below the share, whatever lies around it; copies of a text share its fate. With fewer documents
than would give DRAWS held-out ones that would be a lottery (a whole novel, or nothing): then documents are cut into
short sections at the ends of paragraphs, and of every 1/share sections one is held out, drawn by the seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import xxhash

from launchyard.training.data.index import HoldOut

PIECE_CHARS = 1 << 20  # a longer document is tokenized in pieces, so that memory stays bounded
SECTION_CHARS = 1 << 14
MIN_SECTION_CHARS = 256
DRAWS = 20  # held-out documents, or four times the sections, below which chance decides too much


@dataclass(frozen=True)
class TextPiece:
    """Part of a document; `last` ends it."""

    text: str
    last: bool
    held_out: bool


def choose_holdout(share: float, *, n_documents: int, total_bytes: int) -> HoldOut:
    """Returns the rule to hold out a share; `n_documents` may be a lower bound from `enough_documents` on."""
    if not share:
        return HoldOut(unit="nothing")
    if n_documents >= enough_documents(share):
        return HoldOut(unit="documents")
    fitting = int(total_bytes * min(share, 1 - share) / (DRAWS / 4))
    return HoldOut(unit="sections", section_chars=max(MIN_SECTION_CHARS, min(SECTION_CHARS, fitting)))


def enough_documents(share: float) -> int:
    return -int(-DRAWS // min(share, 1 - share))


class Splitter:
    """Cuts documents into pieces and marks those that are held out. One for a whole data set, in order."""

    def __init__(self, holdout: HoldOut, *, share: float, seed: int) -> None:
        self._holdout = holdout
        self._seed = seed
        self._share = Fraction(share).limit_denominator(10**6)
        self._sections = 0

    def pieces(self, document: Iterable[str]) -> Iterator[TextPiece]:
        """The pieces of one document; none if it is empty."""
        texts = cut_text(document, self._holdout.section_chars or PIECE_CHARS)
        text = next(texts, None)
        if text is None:
            return
        held_out = self._holdout.unit == "documents" and self._of_document(text)
        while text is not None:
            following = next(texts, None)
            if self._holdout.unit == "sections":
                held_out = self._of_section()
            yield TextPiece(text, following is None, held_out)
            text = following

    def _of_document(self, text: str) -> bool:
        draw = xxhash.xxh3_64_intdigest(text.encode(), seed=self._seed % 2**64)
        return Fraction(draw, 2**64) < self._share

    def _of_section(self) -> bool:
        """One of each stratum of about 1/share sections, at a place drawn for that stratum."""
        number = self._sections
        share = self._share
        self._sections += 1
        stratum = number * share.numerator // share.denominator
        first, end = (-(-at * share.denominator // share.numerator) for at in (stratum, stratum + 1))
        draw = xxhash.xxh3_64_intdigest(b"section %d" % stratum, seed=self._seed % 2**64)
        return number == first + draw % (end - first)


def cut_text(blocks: Iterable[str], size: int) -> Iterator[str]:
    """Pieces of at most `size` characters that join to the same text, wherever the blocks ended.

    A cut falls behind a paragraph, else a line, else before a space, in the second half of a piece; else anywhere.
    """
    pending = ""
    for block in blocks:
        pending += block
        start = 0
        while len(pending) - start > size:
            end = _cut_position(pending, start, start + size)
            yield pending[start:end]
            start = end
        pending = pending[start:]
    if pending:
        yield pending


def _cut_position(text: str, start: int, end: int) -> int:
    """Returns the position of a cut of `text` between `start` and `end`."""
    middle = (start + end) // 2
    for sign, behind in (("\n\n", 2), ("\n", 1), (" ", 0)):
        at = text.rfind(sign, middle, end)
        if at > start:
            return at + behind
    return end
