"""Small sets of rows and of pairs of answers, as `launch prepare` writes them, and what a plan says of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from launchyard.training.data.instruct.conversation import Row
from launchyard.training.data.packs import count_packs
from launchyard.training.data.prepare.rows import write_rows
from launchyard.training.data.row_store import group_lengths
from launchyard.training.spec import DataSpec, RowFacts, TokenSource
from tests.support.small_runs import VOCAB


def row(number: int, longest: int = 17) -> list[Row]:
    """3 to `longest` tokens, with labels in the second half."""
    length = 3 + number * 7 % (longest - 2)
    return [Row((np.arange(length) * 3 + number) % VOCAB, np.arange(length) >= length // 2, f"row {number}")]


def pair(number: int) -> list[Row]:
    """One question; the better answer counts up from it, the worse one down."""
    prompt = (np.arange(2 + number % 4) + number) % VOCAB
    sides = [(prompt[-1] + step * np.arange(1, 3 + number % k)) % VOCAB for step, k in ((1, 5), (-1, 7))]
    rows = [np.concatenate([prompt, side]) for side in sides]
    return [Row(ids, np.arange(len(ids)) >= len(prompt), f"pair {number}") for ids in rows]


def write_groups(
    folder: str, groups: Iterable[list[Row]], *, seq_len: int, epochs: int, together: int = 1, validation: float = 0.1
) -> DataSpec:
    """Rows that are read `together`, at a path or URL, for packs of recipes with data.seed 3."""
    splits = write_rows(groups, folder, chunk_tokens=100, validation=validation, seed=1)
    sources = {}
    for name, entry in splits.items():
        assert entry.labels and entry.longest
        where = f"{folder}/{name}"
        packs = count_packs(group_lengths(where, together), epochs=epochs, capacity=seq_len, seed=3)
        facts = RowFacts(
            rows=entry.documents, labels=entry.labels, longest=entry.longest, packs=packs, together=together
        )
        sources[name] = TokenSource(folder=where, n_tokens=entry.tokens, digest=entry.digest, instruct=facts)
    return DataSpec(train=(sources["train"],), validation=(sources["validation"],), tokenizer=None, digest="rows")
