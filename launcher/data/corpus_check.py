"""A check of a corpus: runs the one that fits a source, and tells what it found in words."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.data.progress import preparing_line
from launchyard.launcher.format import table
from launchyard.training.data.index import RowOptions, is_prepared

if TYPE_CHECKING:
    from launchyard.training.data.check.findings import CorpusFindings, Occurrence
    from launchyard.training.data.check.lengths import LengthSummary

NOUNS = {"instruct": "conversations", "preference": "pairs"}
SHOWN = 8  # lines of each list in a terminal


class CorpusCheck(BaseModel):
    """What is asked for, by the options of `launch prepare`."""

    model_config = ConfigDict(frozen=True)

    tokenizer: str | None
    text_key: str
    validation: float
    seed: int
    eos: str | None
    seq_len: int | None
    against: tuple[str, ...]
    near: bool
    rows: RowOptions | None = Field(default=None, description="Of conversations and pairs.")


def check_corpus(sources: list[str], wanted: CorpusCheck) -> CorpusFindings:
    """Reads text, or one prepared folder, and writes nothing. LaunchError for damaged chunks."""
    if len(sources) == 1 and is_prepared(sources[0]):
        return _check_folder(sources[0], wanted)
    if wanted.tokenizer is None and wanted.seq_len:
        raise UserError("--seq-len counts tokens, and no tokenizer is named", hint="--tokenizer FILE")
    if wanted.rows is not None:
        return _check_rows(sources, wanted, wanted.rows)
    from launchyard.training.data.check.text import TextCheck, check_text
    from launchyard.training.data.prepare.encode import open_tokenizer

    of_text = TextCheck(
        text_key=wanted.text_key,
        validation=wanted.validation,
        seed=wanted.seed,
        against=wanted.against,
        seq_len=wanted.seq_len,
        near=wanted.near,
    )
    made = None if wanted.tokenizer is None else open_tokenizer(wanted.tokenizer, eos=wanted.eos)
    return check_text(sources, of_text, tokenizer=made, on_progress=preparing_line(sys.stderr))


def _check_rows(sources: list[str], wanted: CorpusCheck, options: RowOptions) -> CorpusFindings:
    from launchyard.training.data.check.conversations import RowCheck, check_conversations

    of_rows = RowCheck(
        options=options,
        limit=wanted.seq_len,
        validation=wanted.validation,
        seed=wanted.seed,
        against=wanted.against,
        near=wanted.near,
    )
    return check_conversations(sources, of_rows, tokenizer=wanted.tokenizer)


def _check_folder(source: str, wanted: CorpusCheck) -> CorpusFindings:
    from launchyard.storage.errors import CorruptError
    from launchyard.training.data.check.tokens import TokenCheck, check_tokens

    if wanted.validation or wanted.against:
        raise UserError("--validation and --against are for text", hint="a prepared folder has its own held-out part")
    try:
        return check_tokens(source, TokenCheck(wanted.tokenizer, wanted.seq_len, wanted.near))
    except CorruptError as error:
        raise LaunchError(str(error), hint=f"launch inspect {source} --verify") from error


# -- words -----------------------------------------------------------------------------------------------------------
def corpus_lines(found: CorpusFindings) -> Iterator[str]:
    """The lines of the report."""
    yield from table([[name, figure, more] for name, figure, more in figures(found)])
    for tally in found.lengths:
        yield f"lengths in {tally.unit}: {_percentiles(tally)}"
    for title, lines in listed(found):
        yield title
        yield from (f"  {line}" for line in lines[:SHOWN])
        if len(lines) > SHOWN:
            yield f"  … {len(lines) - SHOWN} more, with --json or --report"
    for limit in found.limits:
        yield f"  note: {limit}"


def _percentiles(tally: LengthSummary) -> str:
    marks = ", ".join(f"{mark} {length:,}" for mark, length in tally.percentiles.items())
    return f"{tally.shortest:,} to {tally.longest:,}; {marks}"


def figures(found: CorpusFindings) -> Iterator[tuple[str, str, str]]:
    """Name, figure and remark of each finding."""
    total = found.total
    held = found.documents.get("validation", 0)
    yield NOUNS.get(found.kind, "documents"), f"{total:,}", f"{held:,} of them held out" if held else ""
    for tally in found.lengths:
        yield tally.unit, f"{tally.total:,}", ""
    remark = "refused" if found.kind in NOUNS else "refused, or left out with --skip-invalid"
    yield "rejects", f"{found.rejects.count:,}", remark * bool(found.rejects.count)
    yield "empty", f"{found.empty:,}", ""
    if found.dropped:
        yield "give no row", f"{sum(found.dropped.values()):,}", "not among those above"
    yield "exact duplicates", *_share(found.duplicates_exact, total)
    yield "near duplicates", *_share(found.duplicates_near, total)
    if found.overlap_exact is not None:
        yield "held out and trained on", *_share(found.overlap_exact, held)
        yield "nearly so", *_share(found.overlap_near, held)
    for tally in found.lengths:
        if tally.limit is not None:
            figure, share = _share(tally.longer, tally.documents)
            yield f"longer than {tally.limit:,}", figure, share
    yield "control tokens", f"{sum(one.count for one in found.control_tokens):,}", ""
    yield "control characters", f"{sum(one.count for one in found.control_characters):,}", ""


def _share(part: int | None, whole: int) -> tuple[str, str]:
    if part is None:
        return "-", "not looked for"
    return f"{part:,}", f"{part / whole:.2%}" if whole else ""


def listed(found: CorpusFindings) -> Iterator[tuple[str, list[str]]]:
    """Titles and lines of all that has a place."""
    lists = {
        "rejects": [
            f"{one.file}{'' if one.line is None else f':{one.line}'} {one.reason}" for one in found.rejects.listed
        ],
        "give no row": [f"{reason}: {n:,}" for reason, n in found.dropped.items()],
        "of rows": [f"{what}: {n:,}" for what, n in found.of_rows.items()],
        "documents that are alike": [
            f"{one.place} = {one.like} ({one.similarity:.0%}){', one of them held out' if one.crosses else ''}"
            for one in found.alike
        ],
        "control tokens in documents": _occurrences(found.control_tokens),
        "control characters in documents": _occurrences(found.control_characters),
    }
    yield from ((title, lines) for title, lines in lists.items() if lines)


def _occurrences(found: Sequence[Occurrence]) -> list[str]:
    return [f"{one.what}: {one.count:,} in {one.documents:,} documents, first in {one.first}" for one in found]
