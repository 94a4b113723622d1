"""Matrices as codes of 8 or 4 bits that torch multiplies by without making them plain. For inference only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard.model.adapt.quantized import Scratch
from launchyard.model.network.linear import OpaqueLinear

GROUP = 32  # numbers of a row that share a scale and a zero in int4
_INT8_MAX = 127
_INT4_MAX = 15
_INT4_ZERO = 8  # the code of a group's zero
# With more rows it is faster to make the matrix plain first: the kernel takes it anew for every few rows.
_MOST_ROWS = 8
_PIECE = 1 << 22  # numbers that are coded at once: so much memory it takes, times ten


@dataclass(frozen=True)
class Int8:
    codes: Tensor  # (out, in) int8
    scales: Tensor  # (out,)

    def plain(self) -> Tensor:
        """(out, in) fp32."""
        return self.codes.float() * self.scales.float()[:, None]


@dataclass(frozen=True)
class Int4:
    codes: Tensor  # (out, in) uint8, 0 to 15
    scales: Tensor  # (in / GROUP, out, 2): a scale and a zero

    def plain(self) -> Tensor:
        """(out, in) fp32."""
        scales, zeros = self.scales.float().transpose(0, 1).unbind(-1)
        groups = self.codes.float().unflatten(-1, (-1, GROUP)) - _INT4_ZERO
        return (groups * scales[..., None] + zeros[..., None]).flatten(-2)


def to_int8(weight: Tensor) -> Int8:
    """weight (out, in); its largest number of a row has the code 127 or -127.

    Scales are rounded to bf16, as the kernels take them, before the codes are made: these make up for it. ValueError if
    a number is infinite or none.
    """
    _check(weight, "int8")
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), dtype=torch.bfloat16, device=weight.device)
    for rows, part, factors in zip(*_pieces(weight, codes, scales), strict=True):
        wide = rows.float()
        factors.copy_(wide.abs().amax(1) / _INT8_MAX)
        divisors = torch.where(factors == 0, 1.0, factors.float())
        part.copy_((wide / divisors[:, None]).round_().clamp_(-_INT8_MAX, _INT8_MAX))
    return Int8(codes, scales)


def to_int4(weight: Tensor) -> Int4:
    """weight (out, in), in a multiple of GROUP: the least and the largest of a group have the codes 0 and 15.

    Rounding and errors: as of to_int8.
    """
    _check(weight, "int4")
    n_groups = weight.shape[1] // GROUP
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(len(weight), n_groups, 2, dtype=torch.bfloat16, device=weight.device)
    for rows, part, factors in zip(*_pieces(weight, codes, scales), strict=True):
        groups = rows.float().unflatten(-1, (-1, GROUP))
        least = groups.amin(-1)
        factors[..., 0] = (groups.amax(-1) - least) / _INT4_MAX
        factors[..., 1] = least + _INT4_ZERO * factors[..., 0].float()
        step, zero = factors.float().unbind(-1)
        divisors = torch.where(step == 0, 1.0, step)
        numbers = ((groups - zero[..., None]) / divisors[..., None]).round_() + _INT4_ZERO
        part.copy_(numbers.clamp_(0, _INT4_MAX).flatten(-2))
    return Int4(codes, scales.transpose(0, 1).contiguous())


class Int8Linear(OpaqueLinear):
    """codes (out, in) int8 and scales (out,) in bf16.

    The product is by torch's kernel for a CPU, or by the codes as plain numbers, scaled behind it.
    """

    def __init__(self, plain: nn.Linear, coded: Int8, scratch: Scratch, *, dtype: torch.dtype) -> None:
        """dtype: of the numbers that a plain product is of."""
        super().__init__(plain)
        self.codes = nn.Parameter(coded.codes, requires_grad=False)
        self.scales = nn.Parameter(coded.scales, requires_grad=False)
        self.scratch = scratch
        self.plain = dtype
        self.on_cpu = coded.codes.device.type == "cpu"

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if not self.on_cpu:
            out = F.linear(rows, self.codes.to(x.dtype)) * self.scales  # which a compiler makes one product
        elif rows.shape[0] <= _MOST_ROWS:
            # With fp32 on both sides the kernel takes a number at a time: 6 to 32 times as long (AMD EPYC, torch 2.13).
            out = torch._weight_int8pack_mm(rows.bfloat16().contiguous(), self.codes, self.scales)
        else:
            out = F.linear(rows.to(self.plain), self._numbers()) * self.scales
        return _finished(out, self.bias, x)

    def _numbers(self) -> Tensor:
        codes = self.codes
        return self.scratch.take(codes.numel(), self.plain, codes.device).view(codes.shape).copy_(codes)


class Int4Linear(OpaqueLinear):
    """codes in the order of torch's kernel, and scales (in / GROUP, out, 2) in bf16."""

    def __init__(self, plain: nn.Linear, coded: Int4) -> None:
        super().__init__(plain)
        on_cpu = coded.codes.device.type == "cpu"
        self.codes = nn.Parameter(_cpu_packed(coded.codes) if on_cpu else _gpu_packed(coded.codes), requires_grad=False)
        self.scales = nn.Parameter(coded.scales, requires_grad=False)
        self.product = torch.ops.aten._weight_int4pack_mm_for_cpu if on_cpu else torch.ops.aten._weight_int4pack_mm

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).bfloat16().contiguous()  # which the kernels insist on
        return _finished(self.product(rows, self.codes, GROUP, self.scales), self.bias, x)


def _finished(out: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """out (rows, out) with a bias, in the shape and the type of x."""
    out = out.to(x.dtype) if bias is None else out + bias
    return out.view(*x.shape[:-1], -1).to(x.dtype)


def why_not_int4(out_features: int, in_features: int, device: torch.device) -> str | None:
    """What keeps a matrix from int4 on a device; None if nothing does."""
    if device.type not in ("cpu", "cuda"):
        return f"torch has no int4 product for {device.type}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
        return "this GPU is older than torch's int4 product"
    rows = 16 if device.type == "cpu" else 8
    if in_features % GROUP or out_features % rows:
        return f"not a multiple of {rows} by {GROUP}"
    return None


def _cpu_packed(codes: Tensor) -> Tensor:
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)  # the second number is not used there


def _gpu_packed(codes: Tensor) -> Tensor:
    """Untried: no GPU was at hand. Two codes a byte, the first in the high bits; 2 * 16 numbers are the least tile."""
    pairs = codes[:, ::2] << 4 | codes[:, 1::2]
    return torch.ops.aten._convert_weight_to_int4pack(pairs, 2)


def _check(weight: Tensor, form: str) -> None:
    if not torch.isfinite(weight).all():
        raise ValueError(f"a weight that is infinite or no number has no {form}; take the model in fp32 or bf16")


def _pieces(weight: Tensor, *made: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    """Some rows of each at once."""
    height = max(1, _PIECE // max(1, weight.shape[1]))
    return tuple(tensor.split(height) for tensor in (weight, *made))
