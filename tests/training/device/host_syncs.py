"""Finds places where the host waits for a device, without a device: operations on tensors that have a shape alone.

On "meta" with any build of torch; on "cuda" under fake tensors with a build for CUDA, which takes the paths of a GPU.
Without a GPU that build has no engine for backwards, so the graph of autograd is walked here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode

from launchyard.training.optim import grad_norms

_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.is_nonzero.default}


class HostSyncError(AssertionError):
    """The host waits for the device here."""


class NoHostSync(TorchDispatchMode):
    """Refuses what a host waits in: numbers read from the device, and copies that block, either way.

    Shapes that depend on values are refused by the tensors themselves.
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = dict(kwargs or {})
        if func in _READS and any(map(_is_on_device, args)):
            raise HostSyncError(f"{func} reads a number of the device")
        try:
            out = func(*args, **kwargs)
        except NotImplementedError as error:  # to the host, of a tensor that has nothing to copy
            raise HostSyncError(f"{func} reads numbers of the device: {error}") from error
        if func in _COPIES:
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            blocks = not kwargs.get("non_blocking", len(args) > 2 and bool(args[2]))
            if source.device.type != out.device.type and blocks:
                raise HostSyncError(f"{func} of {tuple(source.shape)} from {source.device} to {out.device} blocks")
        return out


def _is_on_device(arg: object) -> bool:
    return isinstance(arg, Tensor) and arg.device.type != "cpu"


@contextmanager
def shapes_alone(device: str) -> Iterator[None]:
    """Inside it tensors on `device` have no numbers, and backwards go through their shapes."""
    if device == "meta":
        yield
        return
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        if not torch.cuda.is_available():
            patch.setattr(Tensor, "backward", walk_back)
            patch.setattr(grad_norms, "ReadBack", lambda values: values)  # into memory that only a driver pins
            patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        yield


def walk_back(loss: Tensor) -> None:
    """As `loss.backward()`, by Python: the engine of torch asks for a context of every GPU that it meets."""
    assert loss.grad_fn is not None
    order = _inputs_first(loss.grad_fn)
    grads: dict[Node, dict[int, Tensor]] = defaultdict(dict)
    grads[loss.grad_fn][loss.output_nr] = torch.ones_like(loss)
    for node in reversed(order):
        given = grads.pop(node, {})
        if not given:
            continue
        sizes = getattr(node, "_input_metadata", None) or range(max(given) + 1)
        with torch.no_grad():
            apply = getattr(node, "apply", node)  # of a function in Python
            made = _as_tuple(apply(*(given.get(number) for number in range(len(sizes)))))
        for (further, number), grad in _onwards(node, made):
            grad = _as_input(grad, further, number)
            known = grads[further].get(number)
            grads[further][number] = grad if known is None else known + grad


def _onwards(node: Node, made: tuple[Tensor | None, ...]) -> list[tuple[tuple[Node, int], Tensor]]:
    """Where gradients go. A function in Python returns them of all arguments, where next_functions are of tensors."""
    further = node.next_functions
    if len(made) != len(further):
        made = tuple(grad for grad, needed in zip(made, node.needs_input_grad, strict=False) if needed)
        further = tuple(pair for pair in further if pair[0] is not None)
    pairs = zip(further, made, strict=True)
    return [(pair, grad) for pair, grad in pairs if pair[0] is not None and grad is not None]


def _as_input(grad: Tensor, node: Node, number: int) -> Tensor:
    """Summed where it was broadcast, which the engine does between two nodes."""
    sizes = getattr(node, "_input_metadata", None)
    return grad if sizes is None else grad.sum_to_size(tuple(sizes[number].shape))


def _inputs_first(root: Node) -> list[Node]:
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(root, False)]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(further, False) for further, _ in node.next_functions if further is not None]
    return order


def _as_tuple(made: object) -> tuple[Any, ...]:
    return made if isinstance(made, tuple) else (made,)
