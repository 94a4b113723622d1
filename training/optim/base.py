"""The interface of an optimizer, and its groups of parameters. Knows no algorithm and no schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from launchyard.model.layout import is_vector
from launchyard.training.parallel import clean_name


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are treated alike."""

    parameters: tuple[nn.Parameter, ...]
    weight_decay: float


class Optimizer(Protocol):
    """Updates the parameters that train. Its count of steps is the caller's, and its learning rate too."""

    def step(self, number: int, lr: float) -> None:
        """Update number 1, 2, 3 … from the gradients that there are."""
        ...

    def zero_grad(self) -> None: ...

    def state(self, parameter: nn.Parameter) -> Mapping[str, Tensor]:
        """All that must survive a preemption, by name: local tensors, cut as the parameter is, and live.

        Empty for a parameter that does not train.
        """
        ...


def parameter_groups(model: nn.Module, weight_decay: float) -> list[ParameterGroup]:
    """Those that train: matrices decay; vectors (biases, norms) do not."""
    trained = [(clean_name(name), p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        ParameterGroup(tuple(p for name, p in trained if not _is_spared(name, p)), weight_decay),
        ParameterGroup(tuple(p for name, p in trained if _is_spared(name, p)), 0.0),
    ]
    return [group for group in groups if group.parameters]


def _is_spared(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim < 2 or is_vector(name)
