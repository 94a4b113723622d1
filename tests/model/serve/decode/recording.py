"""A recorder of torch's operations on a CPU, as strict as a CUDA graph: the same ones on the same memory.

What Python did between them, and numbers that it read or made, are frozen; what a graph may not do is an error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# They wait for the device, or have a size that depends on numbers there.
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.unique_dim, aten._unique2, aten.equal}


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[OpOverload, tuple[object, ...], dict[str, object], object]] = []

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        named = kwargs or {}
        if func.overloadpacket in WAITS:
            raise RuntimeError(f"{func} waits for the device")
        if func.overloadpacket is aten.lift_fresh and isinstance(args[0], Tensor) and args[0].ndim:
            raise RuntimeError("numbers of the host are copied to the device")
        out = func(*args, **named)
        self.done.append((func, args, named, out))
        return out


def tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storages(tree: object) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors(tree) if tensor.layout is torch.strided}


class OperationRecorder:
    """Counts what it does."""

    def __init__(self) -> None:
        self.n_warm = 0
        self.n_recorded = 0
        self.n_played = 0

    def warm(self, run: Callable[[], None]) -> None:
        self.n_warm += 1
        run()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.n_recorded += 1
        with _Operations() as operations:
            run()
        again: list[Callable[[], None]] = []
        for func, args, named, out in operations.done:
            if func._schema.is_mutable:
                again.append(lambda func=func, args=args, named=named: func(*args, **named))
            elif not storages(out) & storages((args, named)):  # else a view
                again.append(lambda func=func, args=args, named=named, out=out: _remake(func, args, named, out))
                spoil(out)
        spoil(operations.done[-1][1][0])  # nothing has been computed yet

        def play() -> None:
            self.n_played += 1
            for one in again:
                one()

        return play


def _remake(func: OpOverload, args: tuple[object, ...], named: dict[str, object], out: object) -> None:
    for kept, made in zip(tensors(out), tensors(func(*args, **named)), strict=True):
        kept.copy_(made)


def spoil(tree: object) -> None:
    for tensor in tensors(tree):
        tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
