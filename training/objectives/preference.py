"""Losses of pairs: the better answer is to become likelier than the worse one (Rafailov et al. 2023, Meng et al. 2024).

The documents of a micro batch are pairs: a chosen answer, and right after it the rejected one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from launchyard.model.adapt.lora import without_updates
from launchyard.model.network.transformer import Projection
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.data.reader import Batch
from launchyard.training.loss import label_log_probs

NO_DOCUMENTS = "a preference loss is of documents; this batch is a stream of tokens"


@dataclass(frozen=True)
class PreferenceLoss:
    """-log sigmoid(margin - target_margin), summed over pairs; the margin is beta times a difference.

    dpo: by how much the log-probability of the chosen answer has grown more than that of the rejected
    one since the start, which is the same model without its low-rank updates. simpo: of their mean
    log-probabilities a token, without a reference. label_smoothing: the share of pairs taken to be the wrong way round.
    """

    kind: Literal["dpo", "simpo"] = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    target_margin: float = 0.0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}; it must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must lie in [0, 0.5)")
        if self.kind == "dpo" and self.target_margin:
            raise ValueError(f"target_margin is {self.target_margin}; it is for simpo, dpo has none")

    figures = ("reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy")

    def parts(self, batch: Batch) -> int:
        """Pairs. ValueError for documents that are none."""
        return sum(_pairs(len(slot)) for slot in _documents_of(batch))

    def __call__(self, model: nn.Module, batch: MicroBatch, scale: float) -> Tensor:
        """ValueError for documents that are no pairs, and dpo without low-rank updates."""
        chosen, rejected = self.rewards(model, batch).unbind(1)
        margin = chosen - rejected
        gain = margin - self.target_margin
        kept = (1 - self.label_smoothing) * logsigmoid(gain)
        turned = self.label_smoothing * logsigmoid(-gain)
        measured = [chosen.detach(), rejected.detach(), margin.detach(), (margin > 0).float()]
        return scale * torch.stack([-kept - turned, *measured]).sum(dim=1)

    def rewards(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        """(pairs, 2) fp32: of the chosen and the rejected answer of each pair; no pairs in a batch that holds none."""
        sums = answer_log_probs(model, batch)
        if self.kind == "simpo":
            return self.beta * sums / label_counts(batch).clamp(min=1)
        with torch.no_grad(), without_updates(model):
            reference = answer_log_probs(model, batch)
        return self.beta * (sums - reference)


def answer_log_probs(model: nn.Module, batch: MicroBatch) -> Tensor:
    """(pairs, 2) fp32: the summed log-probability, nats, of the labels of each document."""
    places = _documents_of_labels(batch)
    head = partial(_log_probs, labels=batch.labels)
    each: Tensor = model(batch.inputs, head=head, documents=batch.documents, at=batch.at)
    return each.new_zeros(_n_documents(batch)).index_add(0, places, each).view(-1, 2)


def label_counts(batch: MicroBatch) -> Tensor:
    """(pairs, 2) int64: the labels of each document."""
    return torch.bincount(_documents_of_labels(batch), minlength=_n_documents(batch)).view(-1, 2)


def _log_probs(hidden: Tensor, head: Projection, *, labels: Tensor) -> Tensor:
    return label_log_probs(hidden, head.weight, labels, bias=head.bias, softcap=head.softcap)


def _n_documents(batch: MicroBatch) -> int:
    documents = batch.documents
    if documents is None:
        raise ValueError(NO_DOCUMENTS)
    n = 0 if documents.is_padding else len(documents.lengths)
    return 2 * _pairs(n)


def _documents_of(batch: Batch) -> tuple[tuple[int, ...], ...]:
    if batch.documents is None:
        raise ValueError(NO_DOCUMENTS)
    return batch.documents


def _pairs(documents: int) -> int:
    if documents % 2:
        raise ValueError(f"a preference loss is of pairs; this batch has {documents} documents")
    return documents // 2


def _documents_of_labels(batch: MicroBatch) -> Tensor:
    """(K,) int64: the number of the document that each label lies in."""
    assert batch.documents is not None and batch.at is not None
    return batch.documents.numbers(batch.at.device)[batch.at]
