"""Rows of instructions to a prepared folder: chunks of marked tokens, lengths of rows, and a part held out.

Rows come in groups of one, or as the two answers of a pair. A group is held out when a hash of the seed and its common
tokens falls below the share, so copies of a row, and all answers to one question, share their fate. Of few groups those
with the smallest hashes are held out. Knows no conversations and no text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import xxhash

from launchyard.storage import files
from launchyard.training.data.index import ROWS, RowsDigest, SplitEntry
from launchyard.training.data.instruct.conversation import Row
from launchyard.training.data.prepare.split import enough_documents
from launchyard.training.data.prepare.writer import SplitWriter
from launchyard.training.data.row_store import lengths_bytes, marked_ids

RowGroup = Sequence[Row]
NO_TOKEN = -1  # a chunk of rows is one item


class RowWriter:
    """One split on its way to disk."""

    def __init__(self, folder: str, *, chunk_tokens: int) -> None:
        self._folder = folder
        self._writer = SplitWriter(folder, chunk_tokens=chunk_tokens, dtype="uint32", eos_id=NO_TOKEN)
        self._lengths: list[int] = []
        self._labels = 0

    @property
    def n_rows(self) -> int:
        return len(self._lengths)

    @property
    def n_tokens(self) -> int:
        return self._writer.n_tokens

    def add(self, group: RowGroup) -> None:
        for row in group:
            self._add(row)

    def _add(self, row: Row) -> None:
        """ValueError for a row without a label: nothing can be learned from it."""
        labels = int(row.trained.sum())
        if not labels or row.trained[0] or len(row.ids) != len(row.trained):
            where = f"{row.where}: {len(row.ids)} tokens, {labels} of them trained for"
            raise ValueError(f"{where}; a row has at least one such token, and its first is none, as nothing is before")
        self._writer.append(marked_ids(row))
        self._writer.documents += 1
        self._lengths.append(len(row.ids))
        self._labels += labels

    def finish(self) -> SplitEntry:
        raw = lengths_bytes(self._lengths)
        files.write(f"{self._folder}/{ROWS}", raw, sync=True)
        entry = self._writer.finish(RowsDigest(rows=len(self._lengths), xxh3=xxhash.xxh3_64_hexdigest(raw)))
        return entry.model_copy(update={"labels": self._labels, "longest": max(self._lengths)})


def held_out(groups: Iterable[RowGroup], *, share: float, seed: int) -> Iterator[tuple[RowGroup, bool]]:
    """Each group of rows, and True if it is held out."""
    if not share:
        yield from ((group, False) for group in groups)
        return
    few = enough_documents(share)
    first: list[RowGroup] = []
    coming = iter(groups)
    for group in coming:
        first.append(group)
        if len(first) == few:
            break
    draws = [_draw(group, seed) for group in first]
    bound = share
    if len(first) < few and len(different := sorted(set(draws))) > 1:
        bound = different[min(max(1, round(share * len(different))), len(different) - 1)]
    yield from ((group, draw < bound) for group, draw in zip(first, draws, strict=True))
    yield from ((group, _draw(group, seed) < share) for group in coming)


def _draw(group: RowGroup, seed: int) -> float:
    """A number in [0, 1) of the tokens that all rows of a group begin with."""
    shortest = min(len(row.ids) for row in group)
    alike = np.logical_and.reduce([row.ids[:shortest] == group[0].ids[:shortest] for row in group])
    common = group[0].ids[: shortest if alike.all() else int(np.argmin(alike))]
    return float(xxhash.xxh3_64_intdigest(common.astype(np.int64).tobytes(), seed=seed)) / 2.0**64


def write_rows(
    groups: Iterable[RowGroup],
    folder: str,
    *,
    chunk_tokens: int,
    validation: float = 0.0,
    seed: int = 0,
    validation_groups: Iterable[RowGroup] = (),
) -> dict[str, SplitEntry]:
    """Writes the splits of a data set into a folder or URL. ValueError if one of them would be empty.

    validation_groups: of a source that has such a part itself, beside the share of `groups` that is held out.
    """
    train = RowWriter(f"{folder}/train", chunk_tokens=chunk_tokens)
    validated = RowWriter(f"{folder}/validation", chunk_tokens=chunk_tokens)
    for group, out in held_out(groups, share=validation, seed=seed):
        (validated if out else train).add(group)
    for group in validation_groups:
        validated.add(group)
    writers = {"train": train, **({"validation": validated} if validation or validated.n_rows else {})}
    for name, writer in writers.items():
        if not writer.n_rows:
            total = train.n_rows + validated.n_rows
            raise ValueError(f"the {name} part has no row of {total}, with validation {validation}: give more rows")
    return {name: writer.finish() for name, writer in writers.items()}
