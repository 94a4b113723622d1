"""Cross entropy of the next token, at each label."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from launchyard.model.network.transformer import Projection
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.loss import linear_cross_entropy


def next_token(model: nn.Module, batch: MicroBatch, scale: float) -> Tensor:
    """scale * the summed loss over labels, nats, fp32 scalar."""
    head = partial(_loss, labels=batch.labels, scale=scale)
    loss: Tensor = model(batch.inputs, head=head, documents=batch.documents, at=batch.at)
    return loss


def _loss(hidden: Tensor, head: Projection, *, labels: Tensor, scale: float) -> Tensor:
    return linear_cross_entropy(hidden, head.weight, labels, bias=head.bias, softcap=head.softcap, scale=scale)
