"""The loss: a linear layer and cross entropy in one, a slice of rows at a time.

Whole logits of pythia-14m at 2,048 tokens take 412 MB and as much again for their gradient; slices stay in cache and
their gradient is made where the logits were. Knows no model: hidden states, a projection and labels in, a sum out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from launchyard.model.memory import logit_rows
from launchyard.training.spec import IGNORE_INDEX


@dataclass(frozen=True)
class Regularisers:
    """Terms that a model is trained for beside the cross entropy. They change its gradient, and no loss that is shown.

    label_smoothing: this share of a label is spread evenly over all rows of the projection (Szegedy et al. 2016,
    section 7), as torch's cross_entropy does it. z_loss: weight of log(Z)^2 with Z the sum of exp(logits) (PaLM,
    section 5).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0


NO_REGULARISERS = Regularisers()


@dataclass(frozen=True)
class _Settings:
    softcap: float | None
    scale: float
    rows: int  # of a slice
    terms: Regularisers


class _LinearCrossEntropy(torch.autograd.Function):
    """scale * sum over valid rows of -log softmax(logits)[label]; gradients are made in the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        settings: _Settings,
    ) -> Tensor:
        rows = settings.rows
        kept = _kept_type(hidden)
        loss = hidden.new_zeros((), dtype=kept)
        grad_hidden = torch.empty_like(hidden)
        _, learns_weight, learns_bias, *_ = ctx.needs_input_grad
        grad_weight = torch.zeros_like(weight, dtype=kept) if learns_weight else None
        grad_bias = torch.zeros_like(bias, dtype=kept) if bias is not None and learns_bias else None
        for start in range(0, len(hidden), rows):
            x = hidden[start : start + rows]
            y = labels[start : start + rows]
            valid = y != IGNORE_INDEX
            index = y.clamp(min=0).unsqueeze(1)
            factor = (valid * settings.scale).unsqueeze(1)  # (rows, 1)
            logits, slope = _logits(x, weight, bias, settings.softcap)
            log_p = torch.log_softmax(logits, dim=-1)  # (rows, V)
            of_label = log_p.gather(1, index)
            loss -= (of_label * factor).sum()
            log_z = logits.gather(1, index) - of_label if settings.terms.z_loss else None
            grad = _of_logits(log_p.exp_(), index, log_z, settings.terms)
            if slope is not None:
                grad = grad.mul_(slope)
            if grad_bias is not None:
                grad_bias += (grad * factor).sum(0)
            if x.dtype == torch.float16:  # which rounds small probabilities to zero
                grad = grad.mul_(factor)
                factor = torch.ones_like(factor)
            grad = grad.to(x.dtype)  # d loss / d logits, but for the factor, which is cheaper to apply to (rows, D)
            factor = factor.to(x.dtype)
            torch.mul(_product(grad, weight.t()), factor, out=grad_hidden[start : start + rows])
            if grad_weight is None:
                pass  # a frozen head
            elif weight.dtype == kept:
                grad_weight.addmm_(grad.t(), x * factor)
            else:
                grad_weight += grad.t() @ (x * factor)
            del logits, slope, log_p, grad  # the next slice is made where this one was
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        of_weight = None if grad_weight is None else grad_weight.mul_(grad).to(ctx.weight_dtype)
        of_bias = None if grad_bias is None else grad_bias.mul_(grad).to(ctx.weight_dtype)
        return grad_hidden.mul_(grad), of_weight, of_bias, None, None


def _of_logits(p: Tensor, index: Tensor, log_z: Tensor | None, terms: Regularisers) -> Tensor:
    """d objective / d logits, made of the probabilities p (rows, V), in place. index, log_z (rows, 1)."""
    if log_z is not None:
        p.mul_(log_z.mul_(2 * terms.z_loss).add_(1))
    if terms.label_smoothing:
        p.sub_(terms.label_smoothing / p.shape[1])
    return p.scatter_add_(1, index, torch.full_like(index, terms.label_smoothing - 1, dtype=p.dtype))


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """fp32 logits (rows, V), and their derivative by what the cap was put on; None without a cap."""
    kept = _kept_type(x)
    logits = _product(x, weight).to(kept)
    if bias is not None:
        logits += bias.to(kept)
    if softcap is None:
        return logits, None
    bounded = torch.tanh_(logits.div_(softcap))
    return bounded * softcap, bounded.square_().neg_().add_(1)


def _kept_type(x: Tensor) -> torch.dtype:
    """Of logits and sums."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T. Of torch's two CPU kernels oneDNN's is the faster here: 0.34 s instead of 0.49 s for 2,048 x 128
    times 128 x 50,304 in slices of 128 rows, one thread of an AMD EPYC, torch 2.13."""
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return x @ weight.t()


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    terms: Regularisers = NO_REGULARISERS,
) -> Tensor:
    """scale * summed cross entropy in nats, fp32 scalar. Its gradient is that of the sum with `terms`; the sum is not.

    hidden (…, D) float, weight (V, D), bias (V,), labels (…) int64 in [0, V) or IGNORE_INDEX; ignored positions add
    nothing. softcap: bounds the logits by c tanh(x / c).
    """
    hidden = hidden.flatten(0, -2)
    labels = labels.flatten()
    rows = logit_rows(weight.shape[0], hidden.device.type)
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden, weight, bias, labels, _Settings(softcap, scale, rows, terms))
    total = hidden.new_zeros((), dtype=_kept_type(hidden))
    for x, y in zip(hidden.split(rows), labels.split(rows), strict=True):
        logits, _ = _logits(x, weight, bias, softcap)
        total += torch.nn.functional.cross_entropy(logits, y, ignore_index=IGNORE_INDEX, reduction="sum")
    return total * scale


def label_log_probs(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, bias: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Log-probability of each label in nats, (K,) fp32. hidden (K, D), weight (V, D), bias (V,), labels (K,) in [0, V).

    Logits are made a slice of rows at a time, and again in the backward.
    """
    rows = logit_rows(weight.shape[0], hidden.device.type)
    pieces = zip(hidden.split(rows), labels.split(rows), strict=True)
    made = [checkpoint(_log_probs, x, weight, bias, softcap, y, use_reentrant=False) for x, y in pieces]
    return torch.cat(made)


def _log_probs(x: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, labels: Tensor) -> Tensor:
    logits = torch.nn.functional.linear(x, weight, bias).to(_kept_type(x))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return -torch.nn.functional.cross_entropy(logits, labels, reduction="none")
