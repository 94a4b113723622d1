"""Cross entropy of the next token, at each label."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from launchyard.model.network.transformer import Projection
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.data.reader import Batch
from launchyard.training.loss import NO_REGULARISERS, Regularisers, linear_cross_entropy


@dataclass(frozen=True)
class NextToken:
    """The summed loss over labels, in nats; nothing is measured beside it. It is trained for together with `terms`."""

    terms: Regularisers = NO_REGULARISERS

    figures = ()

    def parts(self, batch: Batch) -> int:
        return batch.n_valid

    def __call__(self, model: nn.Module, batch: MicroBatch, scale: float) -> Tensor:
        head = partial(_loss, labels=batch.labels, scale=scale, terms=self.terms)
        loss: Tensor = model(batch.inputs, head=head, documents=batch.documents, at=batch.at)
        return loss[None]


def _loss(hidden: Tensor, head: Projection, *, labels: Tensor, scale: float, terms: Regularisers) -> Tensor:
    return linear_cross_entropy(
        hidden, head.weight, labels, bias=head.bias, softcap=head.softcap, scale=scale, terms=terms
    )
