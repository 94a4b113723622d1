"""A recipe's parts in the caller's hands: `from launchyard import build, step`, for unit tests and notebooks.

No run, no checkpoint, no metrics: what a loop adds around its steps is the caller's.
"""

from __future__ import annotations

import atexit
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.python.begin import planned_workers
from launchyard.launcher.python.errors import python_errors
from launchyard.launcher.python.inside import alone_here, one_rank, own_random_numbers, with_threads
from launchyard.launcher.python.launch import RecipeLike, named
from launchyard.launcher.recipe.load import plain_mapping
from launchyard.launcher.recipe.own_code import OwnFile
from launchyard.launcher.submit.launch import Request, make_ready, prepare_data
from launchyard.training.recipe import Recipe
from launchyard.training.spec import Workload

if TYPE_CHECKING:
    from torch import Tensor, nn

    from launchyard.training.batching import Context
    from launchyard.training.data.reader import Batch
    from launchyard.training.loop.parts import Data, Learner
    from launchyard.training.objectives.objective import Objective
    from launchyard.training.optim.base import Optimizer
    from launchyard.training.optim.grad_norms import GradNorms
    from launchyard.training.stability.guard import Guard


@dataclass(frozen=True, repr=False)
class Built:
    """Model, optimizer and data of a recipe on this machine's first GPU or its CPU, before or after some steps."""

    context: Context
    learner: Learner
    data: Data
    objective: Objective
    guard: Guard | None
    grad_norms: GradNorms | None
    threads: int | None

    def __repr__(self) -> str:
        device = self.context.device
        return f"Built({self.recipe.name}, {device}, {self.steps} of {self.max_steps} steps made)"

    @property
    def recipe(self) -> Recipe:
        """As it was checked, with its defaults."""
        return self.context.recipe

    @property
    def model(self) -> nn.Module:
        """In train mode. It takes (B, T) token ids and gives (B, T, vocabulary) logits."""
        return self.learner.model

    @property
    def optimizer(self) -> Optimizer:
        """It updates what trains; `step(number, lr)` counts from 1, and the learning rate is the caller's."""
        return self.learner.optimizer

    @property
    def steps(self) -> int:
        """How many were made."""
        return self.learner.state.step

    @property
    def max_steps(self) -> int:
        """Of the recipe; the schedule of the learning rate ends there."""
        return self.context.max_steps

    def batch(self, number: int | None = None) -> Batch:
        """The global batch of step 1, 2, 3 …, by default of the next one: the one that `train` reads then.

        `inputs` and `labels` (B, T) int64, labels already shifted, -100 where there is nothing to predict.
        """
        wanted = self.steps + 1 if number is None else number
        if wanted < 1:
            raise ValueError(f"batch {wanted}: steps are counted from 1")
        return self.data.reader.batch(wanted - 1, 0, self.context.share)


@dataclass(frozen=True)
class StepNumbers:
    """A step in numbers: loss and gradient norm before its update, as in the row of that step of a run."""

    step: int
    loss: float  # nats per label (of pairs: nats per pair), over the whole batch
    grad_norm: float  # before clipping
    lr: float
    updated: bool = True  # False: the update was left out, by `stability` or for a gradient that has overflowed
    figures: Mapping[str, float] = field(default_factory=dict)  # measured beside the loss


def build_parts(recipe: RecipeLike = "quickstart", *, overrides: Mapping[str, object] | None = None) -> Built:
    """The parts of a recipe, as its first step would find them: first weights, or those that model.init_from names.

    recipe, overrides: as for `train`; of its resources one worker is taken. Text is tokenized if that was not done yet.
    Of a file that `code` names they have loss, batches and optimizer; its hooks belong to a loop.
    RecipeErrors and UserError for mistakes.
    """
    with alone_here(), python_errors():
        given = plain_mapping(overrides or {}, "overrides")
        source = named(recipe)
        keys = given | planned_workers(source, given, 1)
        ready = prepare_data(make_ready(Request(source, FIRST, keys)))
        cores = ready.plan.environment.get("OMP_NUM_THREADS")
        threads = int(cores) if cores else None
        workload = Workload.model_validate(ready.plan.model_dump(mode="json"))
        with with_threads(threads), own_random_numbers():
            return _compose(ready.loaded.recipe, workload, ready.own, threads)


def take_step(parts: Built, batch: Batch | tuple[Tensor, Tensor] | None = None) -> StepNumbers:
    """Makes the next step: forward, backward, clipping, update. In a row they give the losses of `train`, to the bit.

    batch: that of the step by default; else a Batch, or (inputs, labels), each (B, T) int64 on the CPU, with B a
    multiple of the micro batch or less, labels -100 where nothing is to be learned.
    NonFiniteError if the loss is no number any more, RewindError where the recipe's `stability` would go back.
    """
    from launchyard.training.loop.numbers import NonFiniteError, by_name, make_step, was_skipped
    from launchyard.training.optim.schedule import planned_lr

    state = parts.learner.state
    number = state.step + 1
    given = parts.batch() if batch is None else _as_batch(batch) if isinstance(batch, tuple) else batch
    lr = planned_lr(parts.context, number - 1)
    with with_threads(parts.threads):
        means, norm = make_step(parts, given, parts.objective.parts(given), number, lr)
    state.step = number
    figures = by_name(parts.objective, means.tolist())
    numbers = (figures.pop("loss"), float(norm))
    skipped = was_skipped(numbers[1], state.loss_scale)
    left_out = number in state.left_out
    if not (left_out or (math.isfinite(numbers[0]) and (math.isfinite(numbers[1]) or skipped))):
        raise NonFiniteError(f"step {number}: loss {numbers[0]}, gradient norm {numbers[1]}")
    if not left_out:
        state.tokens_seen += given.n_tokens
    return StepNumbers(number, *numbers, lr, not (skipped or left_out), figures)


def _as_batch(given: Sequence[Tensor]) -> Batch:
    from launchyard.training.data.reader import Batch
    from launchyard.training.spec import IGNORE_INDEX

    inputs, labels = given
    if inputs.shape != labels.shape or inputs.ndim != 2:
        raise ValueError(f"batch: inputs {tuple(inputs.shape)} and labels {tuple(labels.shape)}; both must be (B, T)")
    return Batch(inputs, labels, n_valid=int((labels != IGNORE_INDEX).sum()), data_hash=0)


def _compose(recipe: Recipe, workload: Workload, own: OwnFile | None, threads: int | None) -> Built:
    from launchyard.training.compose import choose_objective, first_learner, open_context, open_guard, open_readers
    from launchyard.training.distributed import disconnect, is_connected
    from launchyard.training.own.load import load_own_code

    code = None if own is None else load_own_code(replace(own.source, name=os.path.basename(own.path)))

    connected = is_connected()
    context = open_context(one_rank(0), recipe, workload)
    if is_connected() and not connected:
        atexit.register(disconnect)
    learner = first_learner(context, code)
    data = open_readers(context, _warn, code=code)
    guard = open_guard(context, learner, data, lambda harm: None)  # StepNumbers.updated says it
    return Built(context, learner, data, choose_objective(recipe, code), guard, None, threads)


def _warn(name: str, /, **facts: object) -> None:
    """There is no run that would keep an event."""
    warnings.warn(f"{name}: {facts.get('message', facts)}", stacklevel=2)
