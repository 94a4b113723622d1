"""Frozen projections whose matrices are codes: made plain for each product, into one buffer, and never kept.

Matrices are given row by row by `Weights`; see training/build.py. Knows no file and no training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard.model.adapt.codes import Coded, decode, decoded_size
from launchyard.model.adapt.forms import Form, packed_bytes, scales_bytes
from launchyard.model.network.uncompiled import uncompiled


@dataclass
class Scratch:
    """The buffer that each matrix of a model is made plain in, one after the other. For one thread at a time."""

    _buffers: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def take(self, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """n numbers. On a CPU the same memory each time: new pages cost as much as the codes."""
        if device.type != "cpu":
            return torch.empty(n, dtype=dtype, device=device)
        buffer = self._buffers.get(dtype)
        if buffer is None or len(buffer) < n:
            with torch.inference_mode(False):  # a tensor of that mode could not be written to outside it
                buffer = self._buffers[dtype] = torch.empty(n, dtype=dtype)
        return buffer[:n]


@dataclass(frozen=True)
class Decoder:
    """From codes to plain matrices of a form, in the scratch of the model."""

    form: Form
    columns: int
    scratch: Scratch

    def __call__(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """(…, rows, columns); valid until the next call."""
        size = decoded_size(codes.shape[:-1].numel(), self.form, self.columns)
        out = self.scratch.take(size, dtype, codes.device)
        return decode(Coded(codes, scales), self.form, self.columns, out=out)


class _Context(Protocol):
    """What a product keeps for its backward: codes, never a plain matrix."""

    saved_tensors: tuple[Tensor, Tensor, Tensor | None]
    decoder: Decoder

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _Product(torch.autograd.Function):
    """x @ matrix.T, and in the backward the gradient of x alone. ends: of the rows of each expert's matrix."""

    @staticmethod
    def forward(
        ctx: _Context, x: Tensor, codes: Tensor, scales: Tensor, decoder: Decoder, ends: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(codes, scales, ends)
        ctx.decoder = decoder
        matrix = decoder(codes, scales, x.dtype)
        if ends is None:
            return F.linear(x, matrix)
        return F.grouped_mm(x, matrix.transpose(-2, -1), offs=ends)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, scales, ends = ctx.saved_tensors
        matrix = ctx.decoder(codes, scales, grad.dtype)
        made = grad @ matrix if ends is None else F.grouped_mm(grad, matrix, offs=ends)
        return made, None, None, None, None


@uncompiled
def _product(x: Tensor, codes: Tensor, scales: Tensor, decoder: Decoder, ends: Tensor | None = None) -> Tensor:
    return _Product.apply(x, codes, scales, decoder, ends)


class QuantizedLinear(nn.Module):
    """A frozen nn.Linear: weight (out, bytes) and scales (out, bytes), both uint8, and a bias (out,) as it was."""

    def __init__(self, plain: nn.Linear, form: Form, scratch: Scratch) -> None:
        super().__init__()
        self.in_features = plain.in_features
        self.out_features = plain.out_features
        self.decoder = Decoder(form, plain.in_features, scratch)
        self.weight, self.scales = _bytes(plain.weight, form)
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        out = _product(x, self.weight, self.scales, self.decoder)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class QuantizedExperts(nn.Module):
    """A frozen ExpertProjection: weight (E, out, bytes) and scales (E, out, bytes), both uint8; bias (E, out)."""

    def __init__(self, plain: nn.Module, form: Form, scratch: Scratch) -> None:
        super().__init__()
        self.decoder = Decoder(form, plain.weight.shape[-1], scratch)
        self.weight, self.scales = _bytes(plain.weight, form)
        self.bias = plain.bias

    def forward(self, x: Tensor, ends: Tensor, experts: Tensor) -> Tensor:
        out = _product(x, self.weight, self.scales, self.decoder, ends)
        return out if self.bias is None else out + self.bias.to(x.dtype)[experts]


def _bytes(plain: Tensor, form: Form) -> tuple[nn.Parameter, nn.Parameter]:
    """Room for the codes and scales of a matrix, where it lies."""
    *lead, columns = plain.shape
    widths = packed_bytes(form, columns), scales_bytes(form, columns)
    made = (torch.empty((*lead, width), dtype=torch.uint8, device=plain.device) for width in widths)
    codes, scales = (nn.Parameter(tensor, requires_grad=False) for tensor in made)
    return codes, scales


def quantise(model: nn.Module, names: list[str], form: Form) -> None:
    """Put a quantised projection in the place of each of those whose matrices are `names`, without values yet.

    The model lies best on the meta device, where its plain matrices take no memory.
    """
    scratch = Scratch()
    for name in names:
        path = name.removesuffix(".weight")
        plain = model.get_submodule(path)
        kind = QuantizedLinear if isinstance(plain, nn.Linear) else QuantizedExperts
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, kind(plain, form, scratch))
