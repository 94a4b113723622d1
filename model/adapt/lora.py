"""Low-rank updates of projections and tables (Hu et al. 2021), with magnitudes as DoRA (Liu et al. 2024).

A weight W (out, in) stays under its name; its update is scale * B A with lora_a (rank, in) and lora_b (out, rank), of
a table scale * (B A)^T. They are cast to the type of what goes through: fp32 beside a base in bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard.model.adapt.noise import Noise
from launchyard.model.adapt.prompt import Prompted, Scaled
from launchyard.model.adapt.quantized import QuantizedLinear
from launchyard.model.adapt.targets import Update
from launchyard.model.adapt.tokens import TokenRows
from launchyard.model.network.linear import Embedding, Linear
from launchyard.model.network.low_rank import Factors, add_updates
from launchyard.model.network.remade import inner


class _LowRank(nn.Module):
    """What an update adds to a projection of any kind; `super()` is that kind."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    magnitude: nn.Parameter | None
    in_features: int
    out_features: int
    scale: float
    noise: Noise | None
    off = False  # see without_updates

    def factors(self) -> Factors | None:
        """Those of the update where it is nothing else."""
        if self.off or self.magnitude is not None or self.noise is not None:
            return None
        return Factors(self.lora_a, self.lora_b, self.scale)

    def plain(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)
        return out

    def forward(self, input: Tensor) -> Tensor:
        if self.off:
            return self.plain(input)
        factors = self.factors()
        if factors is not None:
            return add_updates(input, [self.plain(input)], [factors])[0]
        noisy = input if self.noise is None else self.noise.dropped(input)
        update = F.linear(inner(noisy, self.lora_a.to(input.dtype)), self.lora_b.to(input.dtype)) * self.scale
        out = self.plain(input)
        if self.magnitude is None:
            return out + update
        gain = (self.magnitude / self.norms()).to(input.dtype)
        # The base goes through the same dropout as the update, as in PEFT.
        base = out if noisy is input else self.plain(noisy)
        base = base if self.bias is None else base - self.bias
        return out + (gain - 1) * base + gain * update

    def norms(self) -> Tensor:
        """(out,) fp32: of the rows of the updated weight; a constant for gradients (Liu et al. 2024, section 4.3)."""
        with torch.no_grad():
            return (self.base_weight().float() + self.change()).norm(dim=1)

    def change(self) -> Tensor:
        """(out, in) fp32: the update as a matrix, without a magnitude."""
        return (self.lora_b.float() @ self.lora_a.float()) * self.scale

    def whole_weight(self) -> Tensor:
        """(out, in): the weight that stands for both, in the type of the base."""
        base = self.base_weight()
        if self.off:
            return base
        whole = base.float() + self.change()
        if self.magnitude is not None:
            whole = whole * (self.magnitude / self.norms())[:, None]
        return whole.to(base.dtype)

    def base_weight(self) -> Tensor:
        return self.weight


class LowRankLinear(_LowRank, Linear):
    """A projection with an update."""


class LowRankQuantizedLinear(_LowRank, QuantizedLinear):
    """A projection whose base is codes, with an update."""

    def base_weight(self) -> Tensor:
        return self.decoder(self.weight, self.scales, torch.float32).clone()


_PARAMETERS = ("lora_a", "lora_b", "magnitude", "prompt", "gate", "out_scale", "out_bias", "tokens")
_WITH_UPDATE: dict[type[nn.Module], type[_LowRank]] = {Linear: LowRankLinear, QuantizedLinear: LowRankQuantizedLinear}


def add_update(base: nn.Module, update: Update, *, magnitude: bool, noise: Noise | None) -> None:
    """Make a projection one with an update, unfilled, on the default device. Its own parameters stay as they are."""
    base.__class__ = _WITH_UPDATE[type(base)]
    assert isinstance(base, _LowRank)
    base.scale = update.scale
    base.noise = noise
    base.lora_a = nn.Parameter(torch.empty(update.rank, base.in_features))
    base.lora_b = nn.Parameter(torch.empty(base.out_features, update.rank))
    base.magnitude = nn.Parameter(torch.empty(base.out_features)) if magnitude else None


class LowRankEmbedding(Embedding):
    """A table (ids, dim) with an update: lora_a (rank, ids), lora_b (dim, rank)."""

    off = False

    def __init__(self, base: Embedding, update: Update) -> None:
        super().__init__(base.num_embeddings, base.embedding_dim, device="meta")
        self.weight = base.weight
        self.scale = update.scale
        self.lora_a = nn.Parameter(torch.empty(update.rank, base.num_embeddings))
        self.lora_b = nn.Parameter(torch.empty(base.embedding_dim, update.rank))

    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        if self.off:
            return out
        chosen = F.embedding(input, self.lora_a.t()).to(out.dtype)  # (…, rank)
        return out + F.linear(chosen, self.lora_b.to(out.dtype)) * self.scale


_ADAPTED = (_LowRank, LowRankEmbedding, Prompted, Scaled, TokenRows)


@contextmanager
def without_updates(model: nn.Module) -> Iterator[None]:
    """The base alone, as before any step: nothing of an adapter. ValueError where other parameters train, too."""
    changed = [module for module in model.modules() if isinstance(module, _ADAPTED)]
    own = {id(p) for module in changed for name, p in module.named_parameters(recurse=False) if name in _PARAMETERS}
    others = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in own]
    if others:
        what = f"{others[0]} and {len(others) - 1} more" if len(others) > 1 else others[0]
        raise ValueError(f"{what} train themselves, so the model as it began is not kept; train an adapter alone")
    for module in changed:
        module.off = True
    try:
        yield
    finally:
        for module in changed:
            module.off = False
