"""The interface of an optimizer, and its groups of parameters. Knows no algorithm and no schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor, nn

from launchyard.model.layout import is_vector
from launchyard.training.optim.groups import rule_of
from launchyard.training.parallel import clean_name, local
from launchyard.training.sections.optimizer import GroupRule

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are treated alike, with their names."""

    parameters: tuple[nn.Parameter, ...]
    weight_decay: float
    names: tuple[str, ...] = ()
    lr_scale: float = 1.0


@dataclass(frozen=True)
class StateTensor:
    """This rank's part of one tensor of the state of a parameter. It is live: a load writes into it.

    Its first axis is cut over the ranks as the parameter's is, which has the same length; its others are its own.
    is_whole: it is cut nowhere, and the same on every rank.
    """

    tensor: Tensor
    is_whole: bool = False


class Optimizer(Protocol):
    """Updates the parameters that train. Its count of steps is the caller's, and its learning rate too."""

    def begin(self, *, resumed: bool) -> None:
        """Called once, before the first step: the first weights are in the parameters, or a checkpoint is in
        `weights` and `state`."""
        ...

    def step(self, number: int, lr: float) -> None:
        """Update number 1, 2, 3 … from the gradients that there are."""
        ...

    def zero_grad(self) -> None: ...

    def state(self, parameter: nn.Parameter) -> Mapping[str, StateTensor]:
        """All that must survive a preemption besides the weights, by name. Empty for one that does not train."""
        ...

    def weights(self, parameter: nn.Parameter) -> Tensor:
        """This rank's part of what is saved and exported as the parameter; live, and for most the parameter itself."""
        ...

    def evaluating(self) -> AbstractContextManager[None]:
        """While it lasts the parameters are the `weights`; afterwards, bit for bit, what they were."""
        ...


class InPlace:
    """The part of an optimizer whose parameters are the weights themselves."""

    def __init__(self, groups: Sequence[ParameterGroup]) -> None:
        self._groups = tuple(groups)
        self._state: dict[nn.Parameter, dict[str, StateTensor]] = {p: {} for group in groups for p in group.parameters}
        if not self._state:
            raise ValueError("no parameter trains: every one is frozen; leave some that are not")

    def begin(self, *, resumed: bool) -> None: ...

    def state(self, parameter: nn.Parameter) -> Mapping[str, StateTensor]:
        return self._state.get(parameter, {})

    def weights(self, parameter: nn.Parameter) -> Tensor:
        return local(parameter.detach())

    def evaluating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def zero_grad(self) -> None:
        for p in self._state:
            p.grad = None

    def _moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        return self._state[parameter][key].tensor

    def _with_gradients(self) -> Iterator[tuple[ParameterGroup, nn.Parameter, Tensor, Tensor]]:
        """(group, parameter, this rank's part of it, of its gradient), where this rank has one."""
        for group in self._groups:
            for p in group.parameters:
                if p.grad is not None and local(p.detach()).numel():
                    yield group, p, local(p.detach()), local(p.grad)


def parameter_groups(model: nn.Module, weight_decay: float, rules: Sequence[GroupRule] = ()) -> list[ParameterGroup]:
    """Those that train, by the rules of a recipe: without one, matrices decay; vectors (biases, norms) do not."""
    found: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {(weight_decay, 1.0): [], (0.0, 1.0): []}
    for raw_name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        name = clean_name(raw_name)
        rule = rule_of(name, rules)
        decay = 0.0 if _is_spared(name, p) else weight_decay
        if rule is not None and rule.weight_decay is not None:
            decay = rule.weight_decay
        found.setdefault((decay, 1.0 if rule is None else rule.lr_scale), []).append((name, p))
    return [
        ParameterGroup(tuple(p for _, p in those), decay, tuple(name for name, _ in those), lr_scale)
        for (decay, lr_scale), those in found.items()
        if those
    ]


def _is_spared(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim < 2 or is_vector(name)


def given(value: Setting | None) -> Setting:
    """A key that the recipe's optimizer has: its section fills it in."""
    assert value is not None
    return value
