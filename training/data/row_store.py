"""The rows of a prepared folder of instructions: their tokens, and which of them are trained for.

Rows lie end to end in chunks of 32-bit tokens, the highest bit set where a token is trained for; rows.npy has their
lengths. Knows no packs, no steps and no text.
"""

from __future__ import annotations

import io

import numpy as np
import xxhash

from launchyard.storage import files
from launchyard.storage.errors import CorruptError
from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.chunks import Array
from launchyard.training.data.index import DIGESTS, ROWS, Digests, read_model
from launchyard.training.data.instruct.conversation import Row
from launchyard.training.data.mixture import Ids
from launchyard.training.data.token_store import ID_BITS, TokenStore

TRAINED = np.uint32(ID_BITS + 1)


class RowStore(TokenStore):
    """A split of instructions as a sequence of rows. CorruptError for rows.npy that is not as it was written."""

    def __init__(self, folder: str, *, cache: ChunkCache | None = None) -> None:
        super().__init__(folder, cache=cache)
        self.lengths = read_lengths(self.folder)  # (n_rows,) int64, in tokens
        self.row_starts: Ids = np.cumsum(self.lengths) - self.lengths
        if int(self.lengths.sum()) != self.n_tokens:
            what = f"its rows have {int(self.lengths.sum()):,} tokens and its chunks {self.n_tokens:,}"
            raise CorruptError(f"{self.folder}/{ROWS}: {what}")

    def marked(self, number: int) -> Array:
        """A row's tokens with their marks, as they are stored: (T,) uint32."""
        return self.read(int(self.row_starts[number]), int(self.lengths[number]))

    def row(self, number: int) -> Row:
        raw = self.marked(number)
        return Row((raw & np.uint32(ID_BITS)).astype(np.int64), raw >= TRAINED, f"{self.folder}, row {number}")


def marked_ids(row: Row) -> Array:
    """(T,) uint32 of a row, as a store keeps it."""
    return row.ids.astype(np.uint32) | np.where(row.trained, TRAINED, np.uint32(0))


def read_lengths(folder: str) -> Ids:
    """Tokens of each row of a split: (n_rows,) int64."""
    entry = read_model(f"{folder}/{DIGESTS}", Digests).rows
    if entry is None:
        raise ValueError(f"{folder} holds tokens without rows: it is no split of instructions")
    raw = files.read(f"{folder}/{ROWS}")
    if xxhash.xxh3_64_hexdigest(raw) != entry.xxh3:
        raise CorruptError(f"{folder}/{ROWS}: its bytes are not those that were written; prepare the data again")
    lengths: Ids = np.load(io.BytesIO(raw), allow_pickle=False).astype(np.int64)
    return lengths


def group_lengths(folder: str, together: int) -> Ids:
    """Positions that so many rows, one after the other, take in a pack: (n_rows / together,) int64."""
    lengths: Ids = (read_lengths(folder) - 1).reshape(-1, together).sum(axis=1)
    return lengths


def lengths_bytes(lengths: list[int]) -> bytes:
    """The content of rows.npy."""
    file = io.BytesIO()
    np.save(file, np.asarray(lengths, dtype="<u4"), allow_pickle=False)
    return file.getvalue()
