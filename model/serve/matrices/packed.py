"""Matrices laid out for oneDNN's product on a CPU. The same numbers: results differ by rounding alone."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard.model.network.linear import OpaqueLinear, onednn_product
from launchyard.model.network.mlp import ExpertProjection

# Below so many rows oneDNN takes kernels that read the matrix more slowly than with so many.
_FEWEST_ROWS = 4
_ANY_ROWS = 16  # the layout is the same for all numbers of rows, and is asked for with one


class PackedLinear(OpaqueLinear):
    """A matrix in the order in which the product reads it: neither kept as rows, nor put in order for each product.

    One thread of an AMD EPYC, torch 2.13, beside oneDNN's product by plain rows: bf16 1.3 to 2.4 times as fast with 1
    to 16 rows, fp32 1.1 to 2 times; with 256 rows 1.05 times.
    """

    def __init__(self, plain: nn.Linear, weight: Tensor) -> None:
        """weight (out, in), fp32 or bf16, on a CPU. What goes through is cast to its type, and back."""
        super().__init__(plain)
        self.dtype = weight.dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ANY_ROWS)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).to(self.dtype)
        n_rows = rows.shape[0]
        if n_rows < _FEWEST_ROWS:
            rows = rows.expand(_FEWEST_ROWS, -1) if n_rows == 1 else F.pad(rows, (0, 0, 0, _FEWEST_ROWS - n_rows))
        bias = self.bias if x.dtype == self.dtype else None
        out = onednn_product(rows, self.packed, bias)
        if bias is not self.bias:
            out = out + self.bias  # in the type of x
        return out[:n_rows].view(*x.shape[:-1], self.out_features).to(x.dtype)


class NarrowExperts(ExpertProjection):
    """Experts of another type than what goes through, which is cast to theirs, and back."""

    def forward(self, x: Tensor, ends: Tensor, experts: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype), ends, experts).to(x.dtype)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """True where oneDNN has a product of its own for such numbers, and lays matrices out for it."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and _packs(dtype)


@cache
def _packs(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    weight = torch.arange(32 * 16, dtype=torch.float32).view(32, 16).remainder(7).to(dtype)
    x = torch.ones(_FEWEST_ROWS, 16, dtype=dtype)
    try:
        found = onednn_product(x, torch.ops.mkldnn._reorder_linear_weight(weight, _ANY_ROWS), None)
    except (RuntimeError, NotImplementedError, AttributeError):  # as of builds for other processors
        return False
    return torch.equal(found, F.linear(x, weight))
