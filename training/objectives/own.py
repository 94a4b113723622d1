"""The loss of the user's own file, as a sum over labels: any cut of a batch into micro batches and ranks adds up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.data.reader import Batch
from launchyard.training.own.load import OwnCode, WrongReturnError
from launchyard.training.spec import IGNORE_INDEX

SUM_TOLERANCE = 1e-3  # of two halves of a sum against the whole, in what a device computes


@dataclass(frozen=True)
class _Rows:
    """A micro batch as the function gets it, (B, T) each."""

    tokens: Tensor
    labels: Tensor  # IGNORE_INDEX where there is none
    documents: Tensor  # the number of the document that a token lies in
    positions: Tensor  # in its document


@dataclass
class OwnLoss:
    """The sum that `loss` returns, over the labels of the global batch; and the sums of its figures."""

    code: OwnCode
    checked: bool = field(default=False, repr=False)

    @property
    def figures(self) -> tuple[str, ...]:
        return self.code.described.figures

    def parts(self, batch: Batch) -> int:
        return batch.n_valid

    def __call__(self, model: nn.Module, batch: MicroBatch, scale: float) -> Tensor:
        rows = _rows_of(batch)
        logits: list[Tensor] = []

        def call_model(tokens: Tensor) -> Tensor:
            logits.append(_logits(model, tokens, batch))
            return logits[-1]

        values = self._values(rows, call_model)
        if torch.is_grad_enabled() and not values[0].requires_grad:
            raise self._wrong("what it returned does not depend on model(tokens)")
        if not self.checked and len(logits) == 1:
            self._check_sum(rows, logits[0].detach(), values.detach())
        return scale * values

    def _values(self, rows: _Rows, model: object) -> Tensor:
        returned = self.code.call("loss", model=model, **vars(rows))
        total, figures = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, {})
        if not isinstance(total, Tensor) or total.numel() != 1 or not total.is_floating_point():
            shape = tuple(total.shape) if isinstance(total, Tensor) else type(total).__name__
            raise self._wrong(f"it returned {shape}; allowed: the sum over labels, one number, or (sum, figures)")
        if not isinstance(figures, Mapping) or {*figures} != {*self.figures}:
            given = sorted(figures) if isinstance(figures, Mapping) else type(figures).__name__
            raise self._wrong(f"its figures are {given}, and FIGURES has {sorted(self.figures)}; they must be the same")
        measured = [
            torch.as_tensor(figures[name], device=total.device).detach().float().reshape(()) for name in self.figures
        ]
        return torch.stack([total.float().reshape(()), *measured])

    @torch.no_grad()
    def _check_sum(self, rows: _Rows, logits: Tensor, whole: Tensor) -> None:
        """Once: a mean would train as if the learning rate were another, for every cut of the batch a different one."""
        labelled = rows.documents[rows.labels != IGNORE_INDEX].unique()
        if len(labelled) < 2:
            return
        self.checked = True
        first = rows.documents < labelled[len(labelled) // 2]
        halves = []
        for kept in (first, ~first):
            labels = rows.labels.masked_fill(~kept, IGNORE_INDEX)
            part = _Rows(rows.tokens, labels, rows.documents, rows.positions)
            halves.append(self._values(part, lambda tokens: logits))
        added = halves[0] + halves[1]
        if not torch.isfinite(whole).all() or torch.allclose(added, whole, rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE):
            return
        names = ("the loss", *self.figures)
        off = ~((added - whole).abs() <= SUM_TOLERANCE * (1 + whole.abs()))  # a half that is no number is off, too
        name, one, other, both = next(
            (names[i], *(float(x[i]) for x in (*halves, whole))) for i in range(len(names)) if off[i]
        )
        raise self._wrong(
            f"{name} is no sum over labels: {one:.4g} of the first documents and {other:.4g} of the others, but "
            f"{both:.4g} of all; return a sum, not a mean, and count only where labels is not {IGNORE_INDEX}"
        )

    def _wrong(self, what: str) -> Exception:
        return self.code.failed("loss", WrongReturnError(what))


def _logits(model: nn.Module, tokens: Tensor, batch: MicroBatch) -> Tensor:
    """(B, T, V) fp32. V counts the rows that fill up the head, too, as any loss of a model does."""
    logits: Tensor = model(tokens, documents=batch.documents)
    return logits.float()


def _rows_of(batch: MicroBatch) -> _Rows:
    tokens = batch.inputs
    if batch.documents is None:
        n, length = tokens.shape
        number = torch.arange(n, device=tokens.device)[:, None].expand(n, length)
        return _Rows(tokens, batch.labels, number, torch.arange(length, device=tokens.device).expand(n, length))
    assert batch.at is not None
    labels = torch.full_like(tokens, IGNORE_INDEX)
    labels[0, batch.at] = batch.labels
    documents = batch.documents
    return _Rows(tokens, labels, documents.numbers(tokens.device)[None], documents.positions(tokens.device)[None])
