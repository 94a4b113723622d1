"""What a step makes smaller: a model and a micro batch in, a loss out. A step knows no more of it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from launchyard.training.data.micro_batch import MicroBatch


class Objective(Protocol):
    """A loss as a sum over parts, so that any cut of a batch into micro batches and ranks adds up to the same."""

    def __call__(self, model: nn.Module, batch: MicroBatch, scale: float) -> Tensor:
        """scale * the summed loss, fp32 scalar; it hangs on the model also where the batch holds nothing."""
        ...
