"""Several texts end to end in one row of tokens, kept apart: their lengths. Knows no attention and no weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from launchyard.model.network.transfers import sent


@dataclass(frozen=True)
class Documents:
    """The texts of one row, in order: positions begin anew in each, and none sees another."""

    lengths: tuple[int, ...]  # each at least 1; together the tokens of the row
    row_length: int  # of the rows that they were packed in, before padding was left out
    is_padding: bool = False  # a token for no text, so that a rank without any takes part in a step

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"documents have lengths {self.lengths}; there must be one, and each has a token or more")

    @cached_property
    def _on_devices(self) -> dict[tuple[str, torch.device], Tensor]:
        return {}

    @cached_property
    def n_tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    def positions(self, device: torch.device) -> Tensor:
        """(N,) int64: of each token in its document."""
        return self._sent("positions", device)

    def numbers(self, device: torch.device) -> Tensor:
        """(N,) int64: of each token's document."""
        return self._sent("numbers", device)

    def bounds(self, device: torch.device) -> Tensor:
        """(documents + 1,) int32: where each begins, and the end of the last."""
        return self._sent("bounds", device)

    def _sent(self, what: str, device: torch.device) -> Tensor:
        """Once for all layers."""
        key = what, device
        if key not in self._on_devices:
            self._on_devices[key] = sent(self._made(what), device)
        return self._on_devices[key]

    def _made(self, what: str) -> Tensor:
        if what == "positions":
            return torch.cat([torch.arange(length) for length in self.lengths])
        if what == "numbers":
            return torch.repeat_interleave(torch.tensor(self.lengths), output_size=self.n_tokens)
        return torch.tensor((0, *self.lengths)).cumsum(0).to(torch.int32)
