"""Rows of instructions for people: their text with what is not trained for dimmed, their lengths, what was dropped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

import click

from launchyard.training.data.index import Dataset, read_dataset

if TYPE_CHECKING:
    from launchyard.model.text.tokenizer import Tokenizer
    from launchyard.training.data.instruct.conversation import Row

MARKS = ("⟦", "⟧")  # around what is trained for: dimming is lost in a file or a pipe


def facts_of_rows(dataset: Dataset) -> Iterator[str]:
    """Lines about the rows of a data set: share of labels, lengths, reasons of what was left out."""
    left_out = "pairs" if dataset.kind == "preference" else "conversations"
    for name, split in dataset.splits.items():
        if split.labels is not None and split.documents:
            mean = split.tokens / split.documents
            share = split.labels / split.tokens
            yield (
                f"  {name}: {split.documents:,} rows of {mean:.0f} tokens, {split.longest:,} at most; "
                f"{split.labels:,} tokens ({share:.1%}) are trained for"
            )
    made = dataset.instruct
    if made is None:
        return
    how = f"style {made.style}" if made.style else "the chat template" + (" of the recipe" if made.template else "")
    yield f"  rendered by {how}, at most {made.seq_len + 1:,} tokens a row, longer ones: {made.too_long}"
    yield from (f"  left out: {n:,} {left_out}, {reason}" for reason, n in made.dropped.items())
    yield from (f"  {reason}: {n:,}" for reason, n in made.counts.items())


def rows_left_out(split: str) -> str | None:
    """How many conversations, or pairs, gave no row to the data set of a split's folder, and why; None if all did."""
    dataset = read_dataset(split.rpartition("/")[0])
    if dataset is None or dataset.instruct is None or not dataset.instruct.dropped:
        return None
    reasons = dataset.instruct.dropped
    what, together = ("pairs", 2) if dataset.kind == "preference" else ("conversations", 1)
    count = sum(reasons.values())
    given = count + sum(entry.documents for entry in dataset.splits.values()) // together
    why = "; ".join(f"{reason} ({n:,})" for reason, n in reasons.items())
    return f"{count:,} of {given:,} {what} are left out: {why}"


def lengths_of(folder: str) -> str:
    """Quantiles of the lengths of a split."""
    import numpy as np

    from launchyard.training.data.row_store import read_lengths

    marks = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    found = np.quantile(read_lengths(folder), marks, method="inverted_cdf").tolist()
    return ", ".join(f"{mark:.0%} {length:,.0f}" for mark, length in zip(marks, found, strict=True))


def shown_row(row: Row, tokenizer: Tokenizer) -> str:
    """The text of a row: what is trained for in marks, the rest dimmed."""
    parts = []
    start = 0
    for trained, group in groupby(row.trained.tolist()):
        end = start + len(list(group))
        text = tokenizer.decode(row.ids[start:end].tolist(), skip_special=False)
        parts.append(text.join(MARKS) if trained else click.style(text, dim=True))
        start = end
    return "".join(parts)


def sample_rows(folder: str, n: int, tokenizer: Tokenizer, *, pairs: bool = False) -> str:
    """The first rows, or pairs of rows, of a split as text."""
    from launchyard.training.data.row_store import RowStore

    store = RowStore(folder)
    together = 2 if pairs else 1
    rows = [store.row(number) for number in range(min(n * together, len(store.lengths)))]
    titles = [f"{len(row.ids)} tokens, {int(row.trained.sum())} trained for" for row in rows]
    sides = ("chosen, ", "rejected, ") if pairs else ("",)
    titles = [
        f"{'pair' if pairs else 'row'} {number // together}, {sides[number % together]}{title}"
        for number, title in enumerate(titles)
    ]
    return "\n".join(f"--- {title}\n{shown_row(row, tokenizer)}" for title, row in zip(titles, rows, strict=True))
