"""What a check of a corpus found: one value for the terminal, for JSON and for the page. Knows no files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from launchyard.training.data.check.lengths import LengthSummary
from launchyard.training.data.prepare.sources import Reject

MAX_LISTED = 50


@dataclass(frozen=True)
class Alike:
    """Two documents that are the same or nearly."""

    place: str
    like: str
    similarity: float
    crosses: bool


@dataclass
class Occurrence:
    """A sign or a token that does not belong into text."""

    what: str
    count: int = 0
    documents: int = 0
    first: str = ""


@dataclass
class RejectTally:
    """Documents that `launch prepare` would refuse, or leave out with --skip-invalid."""

    count: int = 0
    listed: list[Reject] = field(default_factory=list)

    def add(self, rejects: list[Reject]) -> None:
        """Takes them over; the list is emptied, as a file may have any number."""
        self.count += len(rejects)
        self.listed += rejects[: MAX_LISTED - len(self.listed)]
        rejects.clear()


@dataclass(frozen=True)
class CorpusFindings:
    """Counts are of documents where nothing else is said."""

    sources: list[str]
    kind: str  # text, instruct, preference, or that of a prepared folder
    documents: dict[str, int]  # of each part, empty ones apart
    empty: int
    rejects: RejectTally
    duplicates_exact: int
    duplicates_near: int | None
    overlap_exact: int | None  # None: nothing is held out
    overlap_near: int | None
    alike: list[Alike]
    lengths: list[LengthSummary]
    control_tokens: list[Occurrence]
    control_characters: list[Occurrence]
    limits: list[str]  # what the figures do not tell
    dropped: dict[str, int] = field(default_factory=dict)  # conversations that give no row, by reason; not documents
    of_rows: dict[str, int] = field(default_factory=dict)  # what else happens to conversations

    @property
    def total(self) -> int:
        return sum(self.documents.values())

    def to_json(self) -> dict[str, object]:
        return asdict(self)


class OccurrenceTally:
    """Counts signs or tokens by their name."""

    def __init__(self) -> None:
        self._found: dict[str, Occurrence] = {}

    def add(self, counts: dict[str, int], place: str) -> None:
        """Those of one document."""
        for what, n in counts.items():
            entry = self._found.setdefault(what, Occurrence(what, first=place))
            entry.count += n
            entry.documents += 1

    def listed(self) -> list[Occurrence]:
        return sorted(self._found.values(), key=lambda one: -one.count)[:MAX_LISTED]
