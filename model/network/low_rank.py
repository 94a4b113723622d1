"""Low-rank updates of projections with one input: one product with the A of all. Knows no adapter's settings, no base.

So small products cost by their number, not by their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from launchyard.model.network.remade import inner


@dataclass(frozen=True)
class Factors:
    """scale * (x A^T) B^T"""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r)
    scale: float


@runtime_checkable
class Adapted(Protocol):
    """A projection with an update."""

    def plain(self, x: Tensor) -> Tensor:
        """The output of its base alone."""
        ...

    def factors(self) -> Factors | None:
        """None where it is not of this form, as with dropout in training: then the module itself is called."""
        ...


def together(x: Tensor, *projections: nn.Module) -> tuple[Tensor, ...]:
    """The outputs of projections of one input, in order."""
    updates = [projection.factors() if isinstance(projection, Adapted) else None for projection in projections]
    outputs = [
        projection.plain(x) if update is not None and isinstance(projection, Adapted) else projection(x)
        for projection, update in zip(projections, updates, strict=True)
    ]
    places = [place for place, update in enumerate(updates) if update is not None]
    added = add_updates(x, [outputs[place] for place in places], [update for update in updates if update is not None])
    for place, output in zip(places, added, strict=True):
        outputs[place] = output
    return tuple(outputs)


def add_updates(x: Tensor, outputs: Sequence[Tensor], updates: Sequence[Factors]) -> tuple[Tensor, ...]:
    """outputs[i] + updates[i] of x. x (…, in); outputs (…, out). Kept: r numbers a token, and x as in `inner`."""
    if not updates:
        return ()
    together = inner(x, torch.cat([update.a for update in updates]).to(x.dtype)).flatten(0, -2)  # (N, sum of r)
    own = together.split([len(update.a) for update in updates], dim=1)
    return tuple(
        torch.addmm(output.flatten(0, -2), part, update.b.to(x.dtype).t(), alpha=update.scale).view_as(output)
        for output, part, update in zip(outputs, own, updates, strict=True)
    )
