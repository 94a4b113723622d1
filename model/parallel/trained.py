"""A transformer whose heads and MLPs are shared by ranks that train it together (Shoeybi et al. 2019, section 3).

Between them the stream is cut by tokens (Korthikanti et al. 2022, section 4.2); tables, the last norm and the head are
whole and the same on all. Knows no optimizer and no files.
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

    def part(self, x: Tensor) -> Tensor:
        """This rank's tokens of x (B, T, D): (B, t, D), padded with zeros where T is no multiple of the ranks."""
        return self._padded(x).chunk(self.count, dim=1)[self.rank].contiguous()

    def joined(self, part: Tensor, length: int) -> Tensor:
        """(B, t, D) of each -> (B, length, D), the same bits on all."""
        found = part.new_empty(self.count * part.shape[0], *part.shape[1:])
        dist.all_gather_into_tensor(found, part.contiguous(), group=self.group)
        return torch.cat(found.chunk(self.count), dim=1)[:, :length]

    def summed_part(self, x: Tensor) -> Tensor:
        """This rank's tokens of the sum of x (B, T, D) over ranks."""
        parts = torch.cat(self._padded(x).chunk(self.count, dim=1))
        out = x.new_empty(parts.shape[0] // self.count, *parts.shape[1:])
        dist.reduce_scatter_tensor(out, parts, group=self.group)
        return out

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, -x.shape[1] % self.count))


class _Context(Protocol):
    ranks: TensorRanks
    length: int


class _Cut(torch.autograd.Function):
    """The stream, into the tokens of each rank."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, ranks: TensorRanks) -> Tensor:
        ctx.ranks = ranks
        ctx.length = x.shape[1]
        return ranks.part(x)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.joined(grad, ctx.length), None


class _Joined(torch.autograd.Function):
    """The tokens of all ranks, for what all of them do alike."""

    @staticmethod
    def forward(ctx: _Context, part: Tensor, ranks: TensorRanks, length: int) -> Tensor:
        ctx.ranks = ranks
        return ranks.joined(part, length)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.ranks.part(grad), None, None


class _Entered(torch.autograd.Function):
    """The tokens of all ranks, for the heads of each; their gradients are summed."""

    @staticmethod
    def forward(ctx: _Context, part: Tensor, ranks: TensorRanks, length: int) -> Tensor:
        ctx.ranks = ranks
        return ranks.joined(part, length)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.ranks.summed_part(grad), None, None


class _Left(torch.autograd.Function):
    """What the heads of all ranks have made, summed, of the tokens of each."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, ranks: TensorRanks) -> Tensor:
        ctx.ranks = ranks
        ctx.length = x.shape[1]
        return ranks.summed_part(x)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.joined(grad, ctx.length), None


class SharedTransformer(Transformer):
    """Takes and gives what the whole model does, if all ranks run it on the same tokens."""

    def __init__(self, config: ModelConfig, ranks: TensorRanks) -> None:
        check_shared_training(config, ranks.count)
        super().__init__(share_config(config, ranks.rank, ranks.count))
        self.ranks = ranks
        self.length = 0  # of the sequences that are in the blocks
        shapes = parameter_shapes(config)
        self.cuts = {name: training_cut(config, name, shape, ranks.rank, ranks.count) for name, shape in shapes.items()}
        for block in self.blocks:
            assert isinstance(block, Block) and isinstance(block.mlp, MLP)
            for half in (block.attention, block.mlp):
                half.register_forward_pre_hook(self._enter)
            block.attention.o_proj = _SummedProjection(block.attention.o_proj, ranks)
            block.mlp.down_proj = _SummedProjection(block.mlp.down_proj, ranks)
        self.blocks[-1].register_forward_hook(lambda _module, _args, out: _Joined.apply(out, ranks, self.length))

    def partial_gradients(self) -> list[str]:
        """Parameters that all have and of which each knows the gradient of its own heads or tokens alone."""
        return [name for name, cut in self.cuts.items() if cut is None and name.startswith("blocks.")]

    def _embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        self.length = tokens.shape[1]
        part: Tensor = _Cut.apply(super()._embedded(tokens, positions), self.ranks)
        return part

    def _enter(self, _half: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
        part, *told = args
        return (_Entered.apply(part, self.ranks, self.length), *told)


class _SummedProjection(Linear):
    """Some columns of a matrix, for some elements of the input; the bias is added to the sum."""

    def __init__(self, plain: Linear, ranks: TensorRanks) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        self.ranks = ranks

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = _Left.apply(F.linear(input, self.weight), self.ranks)
        return out if self.bias is None else out + self.bias


def tensor_ranks_of(model: nn.Module) -> TensorRanks | None:
    return model.ranks if isinstance(model, SharedTransformer) else None
