"""The cache of keys and values of sequences that are being written. Knows no text and no sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from launchyard.model.config import ModelConfig


class BlockCache:
    """Keys and values of one block, in memory that is allocated once. Their positions are those of Cache."""

    def __init__(self, cache: Cache, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        shape = (cache.batch_size, config.n_kv_heads, cache.length, config.head_dim)
        self.shared = cache
        # Zeros: of a shorter row some positions are read, masked, before they are written, and 0 times NaN is NaN.
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)

    def write(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put the new positions behind the old ones; returns all of them. k, v (B, H_kv, T, head_dim)."""
        cache = self.shared
        if cache.even:
            stop = cache.start + k.shape[2]
            self.k[:, :, cache.start : stop] = k
            self.v[:, :, cache.start : stop] = v
            return self.k[:, :, :stop], self.v[:, :, :stop]
        rows = cache.rows
        positions = cache.positions
        self.k[rows, :, positions] = k.transpose(1, 2)
        self.v[rows, :, positions] = v.transpose(1, 2)
        stop = cache.start + k.shape[2]
        return self.k[:, :, :stop], self.v[:, :, :stop]


class Cache:
    """One cache per block, and the length of each row of the batch.

    Rows may be of unequal length: prompts are padded on the right, so that every token keeps its own position; the
    padding lies behind the visible positions of a row and is overwritten as the row grows.
    """

    def __init__(
        self, config: ModelConfig, *, batch_size: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.batch_size = batch_size
        self.length = length
        self.device = device
        self.start = 0  # positions that the longest row has seen
        self.even = True  # all rows have seen as many
        self.lengths: Tensor | None = None  # (B,) int64 when they have not
        self.blocks = [BlockCache(self, config, dtype, device) for _ in range(config.n_layers)]
        self.mask: Tensor | None = None

    def begin(self, n_new: int) -> None:
        """Prepare for `n_new` tokens a row: their positions and masks."""
        if self.start + n_new > self.length:
            raise ValueError(f"the cache holds {self.length} positions; {self.start} are taken, {n_new} do not fit")
        if self.even:
            self.mask = None
            if self.start and n_new > 1:
                new = torch.arange(self.start, self.start + n_new, device=self.device)
                self.mask = torch.arange(self.start + n_new, device=self.device) <= new[:, None]  # (T, L)
            return
        assert self.lengths is not None
        self.rows = torch.arange(self.batch_size, device=self.device)[:, None]
        self.positions = self.lengths[:, None] + torch.arange(n_new, device=self.device)  # (B, T)
        seen = torch.arange(self.start + n_new, device=self.device)
        self.mask = (seen <= self.positions[..., None])[:, None]  # (B, 1, T, L)

    def end(self, n_new: int) -> None:
        """The tokens have gone through all blocks."""
        self.start += n_new
        if self.lengths is not None:
            self.lengths = self.lengths + n_new

    def trim(self, lengths: list[int]) -> None:
        """Of row b only the first lengths[b] positions are real, the rest was padding."""
        self.start = max(lengths)
        self.even = min(lengths) == self.start
        self.lengths = None if self.even else torch.tensor(lengths, device=self.device)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows of the batch only."""
        self.batch_size = len(rows)
        index = torch.tensor(rows, device=self.device)
        for block in self.blocks:
            block.k = block.k[index]
            block.v = block.v[index]
        if self.lengths is not None:
            self.trim(self.lengths[index].tolist())
