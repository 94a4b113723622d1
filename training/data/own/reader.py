"""Samples of the user's own code: rows of tokens by their numbers. Knows no file, no ranks and no model."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import SupportsIndex

import numpy as np
import torch
import xxhash

from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.cache.prefetch import ChunkUse
from launchyard.training.data.mixture import Ids
from launchyard.training.data.reader import Batch, signed
from launchyard.training.own.load import OwnCode, WrongReturnError
from launchyard.training.spec import IGNORE_INDEX

CHECKED = 4  # samples that are asked for twice at the start


class OwnReader:
    """Sample number step * global_batch_size + slot is the same whenever, and by whichever worker, it is asked for;
    the first few are asked for twice at the start, to see that it is so. n_samples: of the whole run as it was planned.
    """

    cache: ChunkCache | None = None

    def __init__(
        self, code: OwnCode, *, n_samples: int, global_batch_size: int, seq_len: int, seed: int, vocab_size: int
    ) -> None:
        self._code = code
        self.n_samples = n_samples
        self.global_batch_size = global_batch_size
        self._seq_len = seq_len
        self._given = {"seq_len": seq_len, "seed": seed, "vocab_size": vocab_size}
        self._check_pure()

    def batch(self, step: int, first_slot: int = 0, n: int | None = None) -> Batch:
        n = self.global_batch_size - first_slot if n is None else n
        if step < 0 or first_slot < 0 or n < 1 or first_slot + n > self.global_batch_size:
            raise IndexError(f"slots {first_slot} to {first_slot + n} of step {step}; a global batch has "
                             f"{self.global_batch_size}")  # fmt: skip
        first = step * self.global_batch_size + first_slot
        return self._batch_of(self._rows(list(range(first, first + n))))

    def plan(self, step: int, first_slot: int, n: int, steps: int) -> tuple[Ids, Ids]:
        starts = np.arange(step, step + steps, dtype=np.int64)[:, None] * self.global_batch_size
        samples = starts + np.arange(first_slot, first_slot + n, dtype=np.int64)
        return np.zeros_like(samples), samples

    def chunks(self, step: int, first_slot: int, n: int, steps: int) -> list[ChunkUse]:
        return []

    def tokens_read(self, steps: int) -> list[int]:
        return [steps * self.global_batch_size * self._seq_len]

    def _check_pure(self) -> None:
        numbers = list(range(min(CHECKED, self.global_batch_size)))
        once = self._rows(numbers)
        again = self._rows(numbers[::-1])[::-1]
        for number, (one, other) in enumerate(zip(once, again, strict=True)):
            if one != other:
                raise self._wrong(
                    f"sample {number} is another when it is asked for again; a row may depend on its number, seed, "
                    "seq_len and vocab_size alone, or a resume would see other tokens"
                )

    def _rows(self, numbers: list[int]) -> list[list[int]]:
        returned = self._code.call("batches", sample_numbers=numbers, **self._given)
        try:
            rows = [[index(token) for token in _plain(row)] for row in _plain(returned)]
        except (TypeError, ValueError) as error:
            raise self._wrong(f"it returned no rows of token ids: {error}") from error
        if len(rows) != len(numbers):
            raise self._wrong(f"it returned {len(rows)} rows for {len(numbers)} sample_numbers; one each")
        for number, row in zip(numbers, rows, strict=True):
            if not 2 <= len(row) <= self._seq_len + 1:
                raise self._wrong(
                    f"sample {number} has {len(row)} tokens; allowed: 2 to seq_len + 1, {self._seq_len + 1}"
                )
            if min(row) < 0 or max(row) >= self._given["vocab_size"]:
                outside = min(row) if min(row) < 0 else max(row)
                raise self._wrong(f"sample {number} has token {outside}; allowed: 0 to {self._given['vocab_size'] - 1}")
        return rows

    def _batch_of(self, rows: list[list[int]]) -> Batch:
        length = self._seq_len
        tokens = np.zeros((len(rows), length + 2), dtype="<i4")  # tokens, the last label, and how many labels count
        labels = torch.full((len(rows), length), IGNORE_INDEX, dtype=torch.int64)
        total = 0
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
            labels[number, : len(row) - 1] = torch.tensor(row[1:])
            hashed = np.array([*row, len(row) - 1], dtype="<i4")
            total += xxhash.xxh3_64_intdigest(hashed.data)
        inputs = torch.from_numpy(tokens[:, :length].astype(np.int64))
        for number, row in enumerate(rows):
            inputs[number, len(row) - 1 :] = 0
        return Batch(inputs, labels, sum(len(row) - 1 for row in rows), signed(total))

    def _wrong(self, what: str) -> Exception:
        return self._code.failed("batches", WrongReturnError(what))


def _plain(values: object) -> Sequence[SupportsIndex]:
    """A list, of an array or a tensor too."""
    tolist = getattr(values, "tolist", None)
    found = tolist() if tolist is not None else values
    if not isinstance(found, list | tuple):
        raise TypeError(f"got {type(values).__name__}")
    return found
