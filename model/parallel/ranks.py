"""The processes that compute one model together, as torchrun starts them, and what they tell each other.

Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from launchyard.host.environment import variable


@dataclass(frozen=True)
class Ranks:
    """This process among `count`; local_rank: among those of its machine."""

    rank: int
    count: int
    local_rank: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def summed(self, x: Tensor) -> Tensor:
        """The sum of what the ranks hold; changes x."""
        dist.all_reduce(x)
        return x

    def gathered(self, x: Tensor) -> Tensor:
        """(…, N) of each -> (…, count N), in their order; the same bits on all."""
        own = x.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(parts, own)
        return torch.cat(parts, dim=-1)

    def agreed(self, numbers: list[int], *, at_most: int) -> list[int]:
        """Those of rank 0. The others know no more than how many there are at most."""
        told = torch.tensor([len(numbers), *numbers, *[0] * (at_most - len(numbers))])
        dist.broadcast(told, src=0)
        n, *values = told.tolist()
        return values[:n]


def ranks_here() -> Ranks | None:
    """The ranks that torchrun started this process among; None if it is alone."""
    count = int(variable("WORLD_SIZE") or 1)
    if count == 1:
        return None
    return Ranks(int(variable("RANK") or 0), count, int(variable("LOCAL_RANK") or 0))


def device_of_rank(name: str, ranks: Ranks) -> str:
    """The device of this rank: of several GPUs the one with its number. ValueError if there are too few."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {name!r}; {ranks.count} ranks have one each, so use auto, cpu or cuda")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and n_gpus == 0):
        return "cpu"
    if ranks.local_rank >= n_gpus:
        raise ValueError(f"this machine has {n_gpus} GPUs, and a rank {ranks.local_rank}; use fewer ranks, or cpu")
    return f"cuda:{ranks.local_rank}"


def connect_ranks(device: torch.device) -> None:
    """Meet the other ranks, once; for numbers of the host and, beside it, for tensors on GPUs."""
    if dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def part_ranks() -> None:
    """Leave together: a process that ends earlier can abort the others' last words."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))
        dist.destroy_process_group()
