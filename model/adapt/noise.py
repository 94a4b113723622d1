"""Dropout whose masks are a pure function of (seed, step, slot of the global batch, name of the layer).

So they are the same after any resume, for any number of workers, any cut into micro-batches, and when activations are
computed again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moment:
    """The part of a run that a forward stands for; the step sets it before each micro-batch. None: no dropout."""

    seed: int = 0
    step: int | None = None
    first_slot: int = 0


@dataclass(frozen=True)
class Noise:
    """Of one layer. All layers of a model share the moment."""

    name: str
    p: float
    moment: Moment

    def dropped(self, x: Tensor) -> Tensor:
        """x (B, T, C), some of its elements zero and the others 1 / (1 - p) times as large; x itself outside a step."""
        if self.moment.step is None:
            return x
        kept = torch.stack([self._kept(x[row], self.moment.first_slot + row) for row in range(len(x))])
        return x * kept.to(x.dtype) / (1 - self.p)

    def _kept(self, row: Tensor, slot: int) -> Tensor:
        key = f"{self.moment.seed}/{self.moment.step}/{slot}/{self.name}"
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1
        generator = torch.Generator(row.device).manual_seed(number)
        return torch.rand(row.shape, generator=generator, device=row.device) >= self.p
