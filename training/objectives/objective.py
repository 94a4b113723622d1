"""What a step makes smaller: a model and a micro batch in, a loss out. A step knows no more of it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.data.reader import Batch


class Objective(Protocol):
    """A loss as a mean over parts of the global batch, such as its labels: any cut into micro batches adds up to it."""

    @property
    def figures(self) -> tuple[str, ...]:
        """What is measured beside the loss: names of rows of steps (run/rows.py), each a mean over parts."""
        ...

    def parts(self, batch: Batch) -> int:
        """How many parts a batch has."""
        ...

    def __call__(self, model: nn.Module, batch: MicroBatch, scale: float) -> Tensor:
        """(1 + figures,) fp32: scale * the sums of the loss and, without a gradient, of the figures.

        The loss hangs on the model also where the batch holds nothing.
        """
        ...
