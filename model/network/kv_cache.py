"""The cache of keys and values of sequences that are being written. Knows no text and no sampling."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.memory import cache_sizes
from launchyard.model.network.positions import causal_mask

_Seen = tuple[Tensor, Tensor, Tensor | None, bool]  # keys, values, mask, and whether they are causal without one


class BlockCache:
    """Keys and values of one block, in memory that is allocated once. Their positions are those of Cache."""

    of_prompt: tuple[Tensor, Tensor] | None = None  # those of an adapter's prompt, which all rows share

    def __init__(self, cache: Cache, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._allocate(cache, config, cache.length, dtype, device)

    def _allocate(
        self, cache: Cache, config: ModelConfig, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        heads, k_dim, v_dim = cache_sizes(config)
        self.shared = cache
        self.device = device
        self.whole_k = _zeros((cache.n_slots, heads, length, k_dim), dtype, device)
        self.whole_v = _zeros((cache.n_slots, heads, length, v_dim), dtype, device)
        self.select(0, cache.n_slots)

    def select(self, first: int, stop: int) -> None:
        """Go on with these rows."""
        self.k = self.whole_k[first:stop]
        self.v = self.whole_v[first:stop]

    def copy(self, source: int, target: int, length: int) -> None:
        """The first positions of a row into another one; of a window all that it holds."""
        held = min(length, self.whole_k.shape[2])
        self.whole_k[target, :, :held] = self.whole_k[source, :, :held]
        self.whole_v[target, :, :held] = self.whole_v[source, :, :held]

    def swap(self, one: int, other: int, length: int) -> None:
        """The first positions of two rows change places."""
        held = min(length, self.whole_k.shape[2])
        for whole in (self.whole_k, self.whole_v):
            kept = whole[one, :, :held].clone()
            whole[one, :, :held] = whole[other, :, :held]
            whole[other, :, :held] = kept

    def reorder(self, rows: Tensor, length: int) -> None:
        """rows (n,): which of the selected rows are the first n from now on."""
        held = min(length, self.whole_k.shape[2])
        for own in (self.k, self.v):
            own[: len(rows), :, :held] = own[rows.to(self.device), :, :held]

    def update(self, k: Tensor, v: Tensor, mask: Tensor | None) -> _Seen:
        """Puts the new positions behind the old ones; returns all that they see. k, v (B, H_kv, T, …)."""
        cache = self.shared
        stop = cache.start + k.shape[2]
        if cache.even:
            self.k[:, :, cache.start : stop] = k
            self.v[:, :, cache.start : stop] = v
        else:
            rows = cache.rows.to(self.device)
            positions = cache.positions.to(self.device)
            self.k[rows, :, positions] = k.transpose(1, 2)
            self.v[rows, :, positions] = v.transpose(1, 2)
        if cache.start == 0:  # nothing but these tokens: as in training
            return k, v, mask, True
        return self.k[:, :, :stop], self.v[:, :, :stop], mask, False


class WindowCache(BlockCache):
    """Of a block whose queries see a window or a chunk: position p lies in slot p % window, and no more is kept."""

    def __init__(
        self, cache: Cache, config: ModelConfig, dtype: torch.dtype, device: torch.device, *, sees: str
    ) -> None:
        assert config.window is not None
        self.config = config
        self.sees = sees
        self.window = config.window
        self._allocate(cache, config, self.window, dtype, device)

    def update(self, k: Tensor, v: Tensor, mask: Tensor | None) -> _Seen:
        cache = self.shared
        if cache.start == 0:
            self._store(k, v)
            return k, v, mask, True
        if k.shape[2] == 1:
            self._store(k, v)
            return self.k, self.v, self._filled(), False
        old = self._held_positions(cache.starts.to(self.device))
        new = cache.positions.to(self.device).expand(len(old), -1)
        keys = torch.cat((old, new), dim=-1)
        seen = causal_mask(self.config, self.sees, new, keys, keys >= 0)
        found = torch.cat((self.k, k), dim=2), torch.cat((self.v, v), dim=2), seen[:, None], False
        self._store(k, v)
        return found

    def _held_positions(self, lengths: Tensor) -> Tensor:
        """The newest position below each row's length that belongs in each slot, (B or 1, window); below 0: none."""
        slots = torch.arange(self.window, device=lengths.device)
        newest = lengths[:, None] - 1
        return newest - (newest - slots) % self.window

    def _store(self, k: Tensor, v: Tensor) -> None:
        cache = self.shared
        starts = cache.starts.to(self.device)
        place = self._held_positions(starts + cache.arriving.to(self.device)) - starts[:, None]  # among the new ones
        place = place.expand(k.shape[0], -1)[:, None, :, None]  # (B, 1, window, 1)
        is_new = place >= 0
        for kept, new in ((self.k, k), (self.v, v)):
            index = place.clamp(min=0).expand(-1, new.shape[1], -1, new.shape[3])
            kept.copy_(torch.where(is_new, new.gather(2, index), kept))

    def _filled(self) -> Tensor:
        """The slots that one more token sees: (B or 1, 1, 1, window)."""
        cache = self.shared
        starts = cache.starts.to(self.device)
        last = starts % self.window if self.sees == "chunk" else starts
        return (torch.arange(self.window, device=last.device) <= last[:, None])[:, None, None]


class Cache:
    """One cache per block: rows for sequences, of which the next tokens go to those that are selected.

    Rows may be of unequal length: prompts are padded on the right, so that every token keeps its own position; the
    padding lies behind the visible positions of a row and is overwritten as the row grows. On a CPU memory is taken as
    positions are written. rewindable: every block keeps all positions, so that `select` may shorten any row.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch_size: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
        block_devices: Sequence[torch.device] | None = None,
        rewindable: bool = False,
    ) -> None:
        """device: of the tokens; block_devices: of each block, if they are on others."""
        self.config = config
        self.n_slots = batch_size
        self.length = length
        # Tokens that the selected sequences may come to: what some rotations depend on.
        self.longest = length
        self.device = device
        self._rewindable = rewindable
        self._expected: list[int] | None = None
        self.starts = torch.zeros(1, dtype=torch.int64, device=device)  # of each row, (B,), where they are unequal
        self._selected = (0, batch_size)
        self.batch_size = batch_size
        devices = block_devices or [device] * config.n_layers
        self.blocks = [self._of_block(config, layer, dtype, own) for layer, own in enumerate(devices)]
        self._has_windows = any(isinstance(block, WindowCache) for block in self.blocks)
        self._set_lengths([0])

    def _of_block(self, config: ModelConfig, layer: int, dtype: torch.dtype, device: torch.device) -> BlockCache:
        sees = config.sees(layer)
        if self._rewindable or sees == "full" or (config.window or self.length) >= self.length:
            return BlockCache(self, config, dtype, device)
        return WindowCache(self, config, dtype, device, sees=sees)

    @property
    def rewinds(self) -> bool:
        """True if a row that has been shortened is as one that was never longer."""
        return not self._has_windows

    def select(self, first: int, lengths: Sequence[int]) -> None:
        """The next tokens are of rows first, first + 1, …, which have these many positions each."""
        selected = (first, first + len(lengths))
        if selected != self._selected:
            self._selected = selected
            self.batch_size = len(lengths)
            for block in self.blocks:
                block.select(*selected)
        self._set_lengths(lengths)

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """The first positions of a row into another one."""
        for block in self.blocks:
            block.copy(source, target, length)

    @torch.inference_mode()
    def swap(self, one: int, other: int, length: int) -> None:
        """The first positions of two rows change places."""
        for block in self.blocks:
            block.swap(one, other, length)

    def expect(self, lengths: list[int]) -> None:
        """Of the next tokens only the first lengths[b] of row b are real, the rest is padding."""
        self._expected = lengths

    def begin(self, n_new: int) -> None:
        """Prepare for `n_new` tokens a row: their positions."""
        if self.start + n_new > self.length:
            raise ValueError(f"the cache holds {self.length} positions; {self.start} are taken, {n_new} do not fit")
        if self.even:
            self.positions = torch.arange(self.start, self.start + n_new, device=self.device)  # (T,)
        else:
            self.positions = self.starts[:, None] + torch.arange(n_new, device=self.device)  # (B, T)
            self.rows = torch.arange(self.batch_size, device=self.device)[:, None]
        if self._has_windows or self._expected is not None:  # at each token of the other models it would be felt
            self.starts = torch.full((1,), self.start, device=self.device) if self.even else self.starts
            self.arriving = torch.tensor([n_new] if self._expected is None else self._expected, device=self.device)

    def mask(self, sees: str, n_new: int) -> Tensor | None:
        """What the new tokens see of all positions up to them, after begin; None if that is everything."""
        if self.even and n_new == 1 and sees == "full" and self.config.positions != "alibi":
            return None
        keys = torch.arange(self.start + n_new, device=self.device)
        seen = causal_mask(self.config, sees, self.positions, keys)
        if self.config.positions == "alibi" or self.even:
            return seen
        return seen[:, None]  # (B, 1, T, S): for all heads

    def end(self, n_new: int) -> None:
        """The tokens have gone through all blocks."""
        if self._expected is None:
            self.start += n_new
            if not self.even:
                self.starts = self.starts + n_new
            return
        self._set_lengths((self.starts + self.arriving).tolist())
        self._expected = None

    def _set_lengths(self, lengths: Sequence[int]) -> None:
        self.start = max(lengths)  # positions that the longest row has seen
        self.even = min(lengths) == self.start  # all rows have seen as many
        self.starts = torch.tensor([self.start] if self.even else list(lengths), device=self.device)

    @torch.inference_mode()
    def keep(self, rows: list[int]) -> None:
        """Go on with these of the selected rows, which become the first ones; a row may be there more than once."""
        index = torch.tensor(rows, device=self.device)
        for block in self.blocks:
            block.reorder(index, self.start)
        self.select(self._selected[0], [self.start] * len(rows) if self.even else self.starts[index].tolist())


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros: of a shorter row some positions are read, masked, before they are written, and 0 times NaN is NaN.

    On a CPU of small pages that take no memory before they are written to: with huge ones a few tokens take all of it.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not n_bytes:
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, n_bytes)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8).view(dtype).view(shape)
