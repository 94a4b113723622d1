"""What the loop passes about: the parts that it is given, and the facts that all ranks know before a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from launchyard.training.batching import Context
from launchyard.training.checkpoint.checkpointer import Checkpointer
from launchyard.training.checkpoint.state import TrainState
from launchyard.training.data.reader import Reader
from launchyard.training.objectives.objective import Objective
from launchyard.training.optim.base import Optimizer
from launchyard.training.own.hooks import Hooks
from launchyard.training.stability.guard import Guard
from launchyard.training.stop import StopFlag
from launchyard.training.telemetry.telemetry import Telemetry
from launchyard.training.validation.asking import Point


@dataclass(frozen=True)
class Learner:
    """The state that changes with every step."""

    model: nn.Module
    optimizer: Optimizer
    state: TrainState


@dataclass(frozen=True)
class Data:
    reader: Reader
    held_out: Reader | None  # for validation


@dataclass(frozen=True)
class Parts:
    """All that `train` needs."""

    context: Context
    learner: Learner
    data: Data
    checkpointer: Checkpointer
    telemetry: Telemetry
    flag: StopFlag
    objective: Objective
    points: Sequence[Point] = ()  # what checkpoints are asked
    guard: Guard | None = None
    hooks: Hooks | None = None  # on rank 0, of the user's own code


@dataclass(frozen=True)
class Agreement:
    """Facts that all ranks know before a step."""

    n_parts: int
    n_valid: int
    n_tokens: int
    data_hash: int
    save: bool
    seconds_trained: float
    reason: str | None
    end: bool = False  # the user's own code has asked for the end of the run
