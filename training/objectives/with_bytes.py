"""An objective that counts the text of its labels too: what bits per byte are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launchyard.model.network.transfers import in_fp64
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.data.reader import Batch
from launchyard.training.objectives.objective import Objective
from launchyard.training.spec import IGNORE_INDEX

LABEL_BYTES = "bytes of labels"  # no figure of the user's own code can be called so


@dataclass(frozen=True)
class WithBytes:
    """The same, measured beside it: the bytes of each label's text. lengths (V,) int64 of each token."""

    objective: Objective
    lengths: Tensor

    @property
    def figures(self) -> tuple[str, ...]:
        return (*self.objective.figures, LABEL_BYTES)

    def parts(self, batch: Batch) -> int:
        return self.objective.parts(batch)

    def __call__(self, model: nn.Module, batch: MicroBatch, scale: float) -> Tensor:
        labels = batch.labels
        n_bytes = (self.lengths[labels.clamp(min=0)] * (labels != IGNORE_INDEX)).sum()
        # In fp64: single bytes are lost in fp32 from 16 MB on.
        return torch.cat([in_fp64(self.objective(model, batch, scale)), scale * in_fp64(n_bytes)[None]])


def with_bytes(objective: Objective, lengths: Tensor | None) -> Objective:
    """The objective as it is where the lengths are not known."""
    return objective if lengths is None else WithBytes(objective, lengths)
