"""Dropout whose masks are a pure function of (seed, step, slot of the global batch, name of the layer).

So they are the same after any resume, for any number of workers, any cut into micro-batches, and when activations are
computed again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from launchyard.model.network.uncompiled import uncompiled


@dataclass
class Moment:
    """The part of a run that a forward stands for; the step sets it before each micro-batch. No step: no dropout."""

    seed: int = 0
    step: int | None = None
    first_slot: int = 0
    tokens: tuple[int, ...] | None = None  # of each slot, where all lie end to end in one row


@dataclass(frozen=True)
class Noise:
    """Of one layer. All layers of a model share the moment."""

    name: str
    p: float
    moment: Moment

    @uncompiled  # a graph would be compiled for each step
    def is_on(self) -> bool:
        return self.moment.step is not None

    @uncompiled
    def dropped(self, x: Tensor) -> Tensor:
        """x (B, T, C), some of its elements zero and the others 1 / (1 - p) times as large; x itself outside a step.

        Also (1, N, C), of all slots end to end.
        """
        if self.moment.step is None:
            return x
        lengths = self.moment.tokens or (x.shape[1],) * len(x)
        slots = enumerate(lengths, start=self.moment.first_slot)
        kept = torch.cat([self._kept(n, x.shape[2], str(slot), x.device) for slot, n in slots]).view_as(x)
        return self._scaled(x, kept)

    @uncompiled
    def dropped_weights(self, weights: Tensor, start: int) -> Tensor:
        """The same of attention weights (B, H, T, S); of one document (1, H, T, S) that begins at `start` of the row
        in which all slots lie end to end."""
        if self.moment.step is None:
            return weights
        _, heads, n, width = weights.shape
        if self.moment.tokens is None:
            places = [str(self.moment.first_slot + row) for row in range(len(weights))]
        else:
            places = [self._place(start)]
        kept = torch.cat([self._kept(heads * n, width, place, weights.device) for place in places])
        return self._scaled(weights, kept.view_as(weights))

    def _place(self, start: int) -> str:
        """The slot in which a document begins, and where in it: both are the same in any cut of the global batch."""
        slot = self.moment.first_slot
        for tokens in self.moment.tokens or ():
            if start < tokens:
                break
            start -= tokens
            slot += 1
        return f"{slot}+{start}"

    def _scaled(self, x: Tensor, kept: Tensor) -> Tensor:
        return x.masked_fill(~kept, 0) / (1 - self.p)  # which keeps the mask as bytes

    def _kept(self, n: int, width: int, place: str, device: torch.device) -> Tensor:
        key = f"{self.moment.seed}/{self.moment.step}/{place}/{self.name}"
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1
        generator = torch.Generator(device).manual_seed(number)
        return torch.rand(n, width, generator=generator, device=device) >= self.p
