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
    """Same parameters and results (to rounding) as nn.Linear; a faster product for one token and a large CPU matrix.

    Generation reads every weight once a token, so it is as fast as memory is read. Of torch's two fp32 kernels oneDNN's
    comes nearer to that: 1.25 times MKL's speed on an AMD EPYC (matrices of 0.6M to 38M, one thread, torch 2.13).
    """

    def reset_parameters(self) -> None: ...

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[-2] == 1 and self._streams(input):
            return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
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


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None: ...
