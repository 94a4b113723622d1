"""A transformer whose heads and MLPs are shared by ranks that train it together (Shoeybi et al. 2019, section 3).

Streams, tables and the head are whole and the same on all. Two sums over the ranks a half of a block: of its result in
the forward, of the gradient of its input in the backward. Knows no optimizer and no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameter_shapes
from launchyard.model.network.linear import Linear
from launchyard.model.network.mlp import MLP
from launchyard.model.network.transformer import Block, Transformer
from launchyard.model.parallel.share import check_shared_training, share_config, training_cut

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class TensorRanks:
    """This process among those that share each of its matrices."""

    rank: int
    count: int
    group: ProcessGroup

    def summed(self, x: Tensor) -> Tensor:
        """A new tensor, the same bits on all."""
        out = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out, group=self.group)
        return out


class _Context(Protocol):
    ranks: TensorRanks


class _Entered(torch.autograd.Function):
    """What all ranks have goes into the part of each; their gradients of it are summed."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, ranks: TensorRanks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.summed(grad), None


class _Left(torch.autograd.Function):
    """The sum of what the ranks have made; its gradient is that of each part."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, ranks: TensorRanks) -> Tensor:
        return ranks.summed(x)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class SharedTransformer(Transformer):
    """Takes and gives what the whole model does, if all ranks run it on the same tokens."""

    def __init__(self, config: ModelConfig, ranks: TensorRanks) -> None:
        check_shared_training(config, ranks.count)
        super().__init__(share_config(config, ranks.rank, ranks.count))
        self.ranks = ranks
        shapes = parameter_shapes(config)
        self.cuts = {name: training_cut(config, name, shape, ranks.rank, ranks.count) for name, shape in shapes.items()}
        for block in self.blocks:
            assert isinstance(block, Block) and isinstance(block.mlp, MLP)
            for half in (block.attention, block.mlp):
                half.register_forward_pre_hook(lambda _, args: (_Entered.apply(args[0], ranks), *args[1:]))
            block.attention.o_proj = _SummedProjection(block.attention.o_proj, ranks)
            block.mlp.down_proj = _SummedProjection(block.mlp.down_proj, ranks)

    def partial_gradients(self) -> list[str]:
        """Parameters that all have and of which each knows the gradient of its own heads alone."""
        return [name for name, cut in self.cuts.items() if cut is None and _is_inside(name)]


class _SummedProjection(Linear):
    """Some columns of a matrix, for some elements of the input; the bias is added to the sum."""

    def __init__(self, plain: Linear, ranks: TensorRanks) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        self.ranks = ranks

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = _Left.apply(F.linear(input, self.weight), self.ranks)
        return out if self.bias is None else out + self.bias


def _is_inside(name: str) -> bool:
    """Behind the sum of the gradient, and before the sum of the result."""
    inside = ".attention." in name or ".mlp." in name
    return inside and not name.endswith(("o_proj.bias", "down_proj.bias"))


def tensor_ranks_of(model: nn.Module) -> TensorRanks | None:
    return model.ranks if isinstance(model, SharedTransformer) else None
