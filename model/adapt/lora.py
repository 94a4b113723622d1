"""Low-rank updates of projections and tables (Hu et al. 2021), with magnitudes as DoRA (Liu et al. 2024).

A weight W (out, in) stays under its name; its update is scale * B A with lora_a (rank, in) and lora_b (out, rank), of
a table scale * (B A)^T. They are cast to the type of what goes through: fp32 beside a base in bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard.model.adapt.noise import Noise
from launchyard.model.adapt.targets import Update
from launchyard.model.network.linear import Embedding, Linear


class LowRankLinear(Linear):
    """A projection with an update; base weight and bias are those of `base`, not copies."""

    def __init__(self, base: Linear, update: Update, *, magnitude: bool) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight = base.weight
        self.bias = base.bias
        self.scale = update.scale
        self.lora_a = nn.Parameter(torch.empty(update.rank, base.in_features))
        self.lora_b = nn.Parameter(torch.empty(base.out_features, update.rank))
        self.magnitude = nn.Parameter(torch.empty(base.out_features)) if magnitude else None
        self.noise: Noise | None = None

    def forward(self, input: Tensor) -> Tensor:
        noisy = input if self.noise is None else self.noise.dropped(input)
        update = F.linear(F.linear(noisy, self.lora_a.to(input.dtype)), self.lora_b.to(input.dtype)) * self.scale
        out = super().forward(input)
        if self.magnitude is None:
            return out + update
        gain = (self.magnitude / self.norms()).to(input.dtype)
        # Of what is not dropped the base stays as it is, so that without an update nothing changes but by its gain.
        base = F.linear(noisy, self.weight) if noisy is not input else out if self.bias is None else out - self.bias
        return out + (gain - 1) * base + gain * update

    def norms(self) -> Tensor:
        """(out,) fp32: of the rows of the updated weight. A constant for the gradient (Liu et al. 2024, section 4.3)."""
        with torch.no_grad():
            return (self.weight.float() + self.change()).norm(dim=1)

    def change(self) -> Tensor:
        """(out, in) fp32: the update as a matrix, without a magnitude."""
        return (self.lora_b.float() @ self.lora_a.float()) * self.scale

    def whole_weight(self) -> Tensor:
        """The weight that stands for both, in the type of the base."""
        whole = self.weight.float() + self.change()
        if self.magnitude is not None:
            whole = whole * (self.magnitude / self.norms())[:, None]
        return whole.to(self.weight.dtype)


class LowRankEmbedding(Embedding):
    """A table (ids, dim) with an update: lora_a (rank, ids), lora_b (dim, rank)."""

    def __init__(self, base: Embedding, update: Update) -> None:
        super().__init__(base.num_embeddings, base.embedding_dim, device="meta")
        self.weight = base.weight
        self.scale = update.scale
        self.lora_a = nn.Parameter(torch.empty(update.rank, base.num_embeddings))
        self.lora_b = nn.Parameter(torch.empty(base.embedding_dim, update.rank))

    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        chosen = F.embedding(input, self.lora_a.t()).to(out.dtype)  # (…, rank)
        return out + F.linear(chosen, self.lora_b.to(out.dtype)) * self.scale
