"""What the loop passes about: the parts that it is given, and the facts that all ranks know before a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from launchyard.training.batching import Context
from launchyard.training.checkpoint.checkpointer import Checkpointer
from launchyard.training.checkpoint.state import TrainState
from launchyard.training.data.reader import Reader
from launchyard.training.objectives.objective import Objective
from launchyard.training.optim.base import Optimizer
from launchyard.training.optim.grad_norms import GradNorms
from launchyard.training.optim.schedule import planned_lr
from launchyard.training.own.hooks import Hooks
from launchyard.training.profile.profiler import Profiler
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
    """held_out: what a validation measures, by the names of the sets. byte_lengths: (V,) int64, of the text of each
    token; None where that is not known, or is no text. It is asked for by all ranks at once: the first validation
    reads the tokenizer, for which the first step need not wait.
    """

    reader: Reader
    held_out: Mapping[str, Reader] = field(default_factory=dict)
    byte_lengths: Callable[[], Tensor | None] = lambda: None


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
    profiler: Profiler
    points: Sequence[Point] = ()  # what checkpoints are asked
    guard: Guard | None = None
    grad_norms: GradNorms | None = None
    rate: Callable[[Context, int], float] = planned_lr  # of the step that follows so many finished ones
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
    snapshot: bool = False  # copy the state into memory
    unsettled: bool = False  # a rank is not ready for that
    saving: bool = False  # a rank writes a checkpoint
    end: bool = False  # the user's own code has asked for the end of the run
