"""A step whose sizes are fixed: where rows stand is told by tensors, and what is beyond them is masked.

So the same operations on the same memory make every token, and nothing waits for the device. Knows no graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from launchyard.model.network.kv_cache import BlockCache, Cache, WindowCache
from launchyard.model.network.positions import causal_mask
from launchyard.model.network.transformer import Transformer

EXACT_ROWS = 8  # up to so many rows are not rounded up
_SHORTEST = 64  # positions


def rounded_rows(n: int, most: int) -> int:
    """Sizes of steps with at least n rows: each n up to EXACT_ROWS, then 12, 16, 24, 32, …; most: if that is less."""
    return n if n <= EXACT_ROWS else min(most, _rounded(n))


def rounded_length(n: int, most: int) -> int:
    """64, 96, 128, 192, …: at most a third of what attention reads is padding."""
    return min(most, _rounded(max(n, _SHORTEST)))


def _rounded(n: int) -> int:
    """The next power of two, or three quarters of it."""
    power = 1 << (n - 1).bit_length()
    return power * 3 // 4 if n <= power * 3 // 4 else power


class FixedStep:
    """One more token for up to `n_rows` rows of up to `length` positions, the new one included.

    `inputs` (3, n_rows): ids, positions, and the rows that keys and values go to. Rows that are none write to
    `spare_row`, which no text has.
    """

    def __init__(self, model: Transformer, cache: Cache, *, n_rows: int, length: int, spare_row: int) -> None:
        self.inputs = torch.zeros(3, n_rows, dtype=torch.int64, device=cache.device)
        self._model = model
        self._spare_row = spare_row
        self._ids, positions, rows = self.inputs.unbind()
        self._cache = _FixedCache(cache, length, positions, rows)
        # Others of this model may make longer tables, or for other lengths: these stay while a graph reads them.
        self._turns = model.rotations(cache.length, longest=cache.longest)

    def fill(self, tokens: Sequence[int], lengths: Sequence[int]) -> None:
        n_none = self.inputs.shape[1] - len(tokens)
        none = [0] * n_none
        rows = [*range(len(tokens)), *[self._spare_row] * n_none]
        self.inputs.copy_(torch.tensor([[*tokens, *none], [*lengths, *none], rows]))

    def run(self, out: Tensor) -> None:
        """Of what was filled in, the logits into out (n_rows, vocab_size)."""
        logits = self._model(self._ids[:, None], cache=self._cache)
        out.copy_(logits[:, 0, : out.shape[1]])


class _FixedCache(Cache):
    """Some rows of a cache, and some positions of each, for one more token a row."""

    def __init__(self, cache: Cache, length: int, positions: Tensor, rows: Tensor) -> None:
        """positions, rows (B,): of the new tokens."""
        self.config = cache.config
        self.device = cache.device
        self.length = length
        self.longest = cache.longest
        self.start = length - 1  # as of the longest row that there may be
        self.positions = positions[:, None]
        self.rows = rows
        self.dtype = cache.blocks[0].whole_k.dtype
        self._windowed = {block.sees for block in cache.blocks if isinstance(block, WindowCache)}
        self.blocks = [_FixedBlock(self, block) for block in cache.blocks]

    def begin(self, n_new: int) -> None:
        assert n_new == 1
        self.slots = self.positions[:, 0]
        if self._windowed:
            assert self.config.window is not None
            self.slots_of_window = self.slots % self.config.window

    def mask(self, sees: str, n_new: int) -> Tensor:
        """Numbers to add, once for all layers of a kind: (B, 1 or H, 1, S)."""
        if sees in self._windowed:
            seen = self._filled(sees)
        else:
            seen = causal_mask(self.config, sees, self.positions, torch.arange(self.length, device=self.device))
            if self.config.positions == "alibi":
                return seen
            seen = seen[:, None]
        return torch.zeros(seen.shape, dtype=self.dtype, device=self.device).masked_fill(~seen, -torch.inf)

    def _filled(self, sees: str) -> Tensor:
        """The slots of a window that the new token sees: (B, 1, 1, window)."""
        last = self.slots_of_window if sees == "chunk" else self.slots
        assert self.config.window is not None
        return (torch.arange(self.config.window, device=self.device) <= last[:, None])[:, None, None]

    def end(self, n_new: int) -> None: ...


class _FixedBlock(BlockCache):
    def __init__(self, cache: _FixedCache, own: BlockCache) -> None:
        n_rows = len(cache.rows)
        self._cache = cache
        self._has_window = isinstance(own, WindowCache)
        self.device = own.device
        self.of_prompt = own.of_prompt
        self.whole_k = own.whole_k
        self.whole_v = own.whole_v
        self.k = own.whole_k[:n_rows] if self._has_window else own.whole_k[:n_rows, :, : cache.length]
        self.v = own.whole_v[:n_rows] if self._has_window else own.whole_v[:n_rows, :, : cache.length]

    def update(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, bool]:
        cache = self._cache
        slots = cache.slots_of_window if self._has_window else cache.slots
        self.whole_k[cache.rows, :, slots] = k[:, :, 0]
        self.whole_v[cache.rows, :, slots] = v[:, :, 0]
        return self.k, self.v, mask, False
