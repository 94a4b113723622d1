"""Bytes that an optimizer keeps, as closed forms of shapes. Light: plans ask it; tests hold it against real state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launchyard.model.layout import Parameter, is_vector
from launchyard.training.sections.optimizer import OptimizerConfig

FP32 = 4  # bytes
CODED_BLOCK = 256  # of 8 bits: numbers of one row that share a scale
SHORTEST_ROW = 32  # shorter ones stay fp32: the scales would weigh as much as what they save
# Bytes of a number of the largest tensor while it is updated, of those that update one after the other.
_AT_ONCE = {"lion": 4, "muon": 18, "adamw-8bit": 34, "adamw-schedule-free": 8, "adafactor": 8}


@dataclass(frozen=True)
class StateSize:
    """Bytes. saved: in a checkpoint beside the weights; held: on each worker; temporary: there in a step besides."""

    saved: int
    held: int
    temporary: int


def is_coded(shape: Sequence[int]) -> bool:
    """True for a parameter whose moments adamw-8bit keeps in 8 bits."""
    return len(shape) > 1 and shape[-1] >= SHORTEST_ROW


def is_hidden(name: str, shape: Sequence[int]) -> bool:
    """True for one that Muon steps: tables, the head and vectors are no maps between hidden states."""
    return name.startswith("blocks.") and len(shape) > 1 and not is_vector(name) and not name.endswith(".prompt")


def state_size(
    config: OptimizerConfig, layout: Mapping[str, Parameter], shards: int, *, number_bytes: int = FP32
) -> StateSize:
    """Of an optimizer over the parameters that train, cut over `shards` workers. number_bytes: of one of its state."""
    shapes = {name: parameter.shape for name, parameter in layout.items() if parameter.trained}
    cut = sum(_cut_bytes(config, name, shape, number_bytes) for name, shape in shapes.items())
    whole = sum(_whole_bytes(config, shape, number_bytes) for shape in shapes.values())
    numbers = sum(map(math.prod, shapes.values()))
    kept = number_bytes * numbers if config.name == "adamw-schedule-free" else 0  # the average: saved as the weights
    largest = max(map(math.prod, shapes.values()))
    temporary = _AT_ONCE.get(config.name, 0) * (largest if config.name == "muon" else math.ceil(largest / shards))
    if config.name == "adafactor" and not config.low_memory:  # the updates of all
        temporary += number_bytes * math.ceil(numbers / shards)
    return StateSize(cut + whole, math.ceil((cut + kept) / shards) + whole, temporary)


def with_state(memory: Mapping[str, int], state: StateSize, *, beside: int = 0) -> dict[str, int]:
    """A worker's memory by its parts, of model/memory.py, with this state in the place of AdamW's, and what is `beside`
    it in both."""
    peak = memory["total"] - memory["weights"] - memory["optimizer"]
    peak = max(peak, memory["gradients"] + state.temporary)
    held = state.held + beside
    return {**memory, "optimizer": held, "total": memory["weights"] + held + peak}


def _cut_bytes(config: OptimizerConfig, name: str, shape: Sequence[int], number_bytes: int) -> int:
    """Of the state of a parameter, as far as it is cut over workers."""
    size = math.prod(shape)
    match config.name:
        case "sgd":
            return number_bytes * size if config.momentum else 0
        case "lion":
            return number_bytes * size
        case "muon":
            return number_bytes * size * (1 if is_hidden(name, shape) else 2)
        case "adamw-8bit" if is_coded(shape):
            return 2 * (size + FP32 * math.prod(shape[:-1]) * math.ceil(shape[-1] / CODED_BLOCK))
        case "adafactor" if len(shape) > 1:
            *lead, rows, columns = shape
            return number_bytes * (math.prod(lead) * (rows + columns) if lead else rows)
        case "adafactor":
            return number_bytes * size
        case _:
            return 2 * number_bytes * size


def _whole_bytes(config: OptimizerConfig, shape: Sequence[int], number_bytes: int) -> int:
    """Of that which each worker has in full."""
    if config.name == "adafactor":
        return number_bytes * shape[1] if len(shape) == 2 else 0
    return 16 if config.name == "adamw-schedule-free" else 0
