"""nn.Linear and nn.Embedding without first values of their own: model/network/init.py makes them, or a file does.

Drawing them on the meta device would import torch's compiler: a second of every start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Below this a matrix lies in the cache, and the start of the other kernel (15 us) costs more than it gains.
LARGE = 1 << 18


class Linear(nn.Linear):
    """Same parameters and results (to rounding) as nn.Linear; a faster product by a large CPU matrix without gradients.

    Of torch's two fp32 kernels oneDNN's is the faster one for any number of rows: 1.03 to 1.4 times MKL's speed for a
    matrix of 0.6M numbers, 1.2 to 2.9 times for one of 38M (1 to 256 rows, an AMD EPYC, one thread, torch 2.13).
    """

    def reset_parameters(self) -> None: ...

    def forward(self, input: Tensor) -> Tensor:
        if self._streams(input):
            return onednn_product(input, self.weight, self.bias)
        return F.linear(input, self.weight, self.bias)

    def whole_weight(self) -> Tensor:
        """(out, in): the matrix that the layer multiplies by."""
        return self.weight

    def whole_bias(self) -> Tensor | None:
        """(out,): what the layer adds to the product."""
        return self.bias

    def _streams(self, input: Tensor) -> bool:
        weight = self.weight
        return (
            not torch.is_grad_enabled()
            and input.device.type == "cpu"
            and input.dtype == weight.dtype == torch.float32
            and weight.numel() >= LARGE
            and torch.backends.mkldnn.is_available()
        )


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (…, in) on a CPU; weight (out, in), of the same type, as rows or in an order of oneDNN's own."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OpaqueLinear(nn.Module):
    """A projection without a matrix of plain rows, for inference only: what it holds instead, its subclasses say."""

    bias: nn.Parameter | None

    def __init__(self, plain: nn.Linear) -> None:
        """With the sizes and the bias of `plain`, whose matrix it does not keep."""
        super().__init__()
        self.in_features = plain.in_features
        self.out_features = plain.out_features
        self.register_parameter("bias", plain.bias)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Embedding(nn.Embedding):
    out_dtype: torch.dtype | None = None  # of the vectors, where it is not that of the table

    def reset_parameters(self) -> None: ...

    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        return out if self.out_dtype is None else out.to(self.out_dtype)
