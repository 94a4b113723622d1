"""An adapter's updates in the weights that they are over: plain arithmetic on rows, in fp32. Knows no module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from launchyard.model.adapt.targets import Update

Added = Callable[[str], Tensor]  # a parameter of the adapter by our name, whole, on the CPU


@dataclass(frozen=True)
class MatrixMerge:
    """The update of one projection or table. name: without `.weight`."""

    name: str
    update: Update
    magnitude: bool
    added: Added

    def rows(self, base: Tensor, rows: range) -> Tensor:
        """base (n, in): those rows of the weight. fp32, with the update in them."""
        a = self.added(f"{self.name}.lora_a").float()
        b = self.added(f"{self.name}.lora_b").float()
        mine = slice(rows.start, rows.stop)
        if self.name == "embed":  # lora_a (rank, ids), lora_b (dim, rank)
            return base.float() + (a[:, mine].t() @ b.t()) * self.update.scale
        whole = base.float() + (b[mine] @ a) * self.update.scale
        if not self.magnitude:
            return whole
        gain = self.added(f"{self.name}.magnitude").float()[mine] / torch.linalg.vector_norm(whole, dim=1)
        return whole * gain[:, None]


@dataclass(frozen=True)
class TokenMerge:
    """What is added to the rows of some tokens of a table or head. name: of the parameter."""

    name: str
    ids: tuple[int, ...]
    added: Added

    def rows(self, base: Tensor, rows: range) -> Tensor:
        """base (n, dim): those rows of the table. fp32, with what is added to them."""
        mine = [number for number, token in enumerate(self.ids) if token in rows]
        places = torch.tensor([self.ids[number] - rows.start for number in mine], dtype=torch.int64)
        return base.float().index_add(0, places, self.added(self.name).float()[mine])
