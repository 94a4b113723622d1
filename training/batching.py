"""The division of an optimizer step among workers, and the number of steps: pure functions of recipe and world size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from launchyard.training.recipe import Recipe
from launchyard.training.sections.ramp import ramped, ramped_sum, steps_to_sum
from launchyard.training.sections.train import ParallelConfig, TrainConfig

if TYPE_CHECKING:
    import torch

    from launchyard.training.distributed import World
    from launchyard.training.spec import DataSpec, TokenSource, Workload


@dataclass(frozen=True)
class BatchSizes:
    """The division of one optimizer step. Sizes count sequences; world_size counts those that take a share."""

    global_batch_size: int
    micro_batch_size: int
    grad_accum_steps: int
    world_size: int


def cut_batch(train: TrainConfig, world_size: int) -> BatchSizes:
    """Cut the global batch over `world_size` workers; ValueError names sizes that fit.

    Smaller batches of a ramp are cut as evenly; their micro batches are as large, or all there is.
    """
    total = train.global_batch_size
    for start, size in train.batch_size_ramp:
        if size % world_size:
            raise ValueError(
                f"train.batch_size_ramp: {size} sequences, from step {start}, cannot be cut evenly over {world_size} "
                f"workers; use multiples of {world_size}"
            )
    fits = [n for n in range(1, total + 1) if total % n == 0]
    if total % world_size:
        raise ValueError(
            f"train.global_batch_size: {total} sequences cannot be cut evenly over {world_size} workers; use a "
            f"multiple of {world_size}, or one of these numbers of workers: {', '.join(map(str, fits[:12]))}"
        )
    share = total // world_size
    micro = train.micro_batch_size or share
    if share % micro:
        fits = [n for n in range(1, share + 1) if share % n == 0]
        raise ValueError(
            f"train.micro_batch_size: {micro} does not divide the {share} sequences of each of {world_size} workers "
            f"(global_batch_size {total}); use one of {', '.join(map(str, fits[:12]))}"
        )
    return BatchSizes(total, micro, share // micro, world_size)


def sequences_in(train: TrainConfig, step: int) -> int:
    """Sequences of the step that follows `step` finished ones."""
    return ramped(train.batch_size_ramp, step, train.global_batch_size)


def sequences_before(train: TrainConfig, step: int) -> int:
    """Sequences of the first `step` steps: the place in the data where the next one begins."""
    return ramped_sum(train.batch_size_ramp, step, train.global_batch_size)


def ramp_unit(train: TrainConfig) -> int:
    """The batch that all of a ramp are multiples of; without one the global batch."""
    return math.gcd(train.global_batch_size, *(size for _, size in train.batch_size_ramp))


def _steps_of(train: TrainConfig, amount: float, per_sequence: int = 1) -> int:
    """The fewest steps that read so much, of which a sequence has `per_sequence`."""
    if not train.batch_size_ramp:
        return math.ceil(amount / (train.global_batch_size * per_sequence))
    return steps_to_sum(train.batch_size_ramp, math.ceil(amount / per_sequence), train.global_batch_size)


def shares_of(parallel: ParallelConfig) -> int:
    """Workers that take the same share of a batch."""
    return parallel.tp * parallel.cp


def count_samples(n_tokens: int, seq_len: int) -> int:
    """Sequences in a stream of tokens; the last may be short, none is dropped."""
    return max(0, math.ceil((n_tokens - 1) / seq_len))


def samples_of(source: TokenSource, seq_len: int) -> int:
    """Sequences in an epoch of a source, of its first one if their number differs."""
    if source.instruct is None:
        return count_samples(source.n_tokens, seq_len)
    return source.instruct.packs[0]


def shares_over(data: DataSpec, recipe: Recipe, steps: int) -> tuple[float, ...]:
    """Of all samples in the first `steps` steps, how many come from each source; their sum is 1."""
    stages = recipe.data.mixture_schedule or []
    begins = [stage.from_step for stage in stages if stage.from_step < steps]
    if not begins:
        return data.shares
    ends = [sequences_before(recipe.train, step) for step in (0, *begins, steps)]
    lengths = [end - begin for begin, end in pairwise(ends)]
    weights = [[source.weight for source in data.train], *(stage.weights for stage in stages)]
    read = [0.0] * len(data.train)
    for length, row in zip(lengths, weights, strict=False):
        read = [sofar + length * weight / sum(row) for sofar, weight in zip(read, row, strict=True)]
    return tuple(one / ends[-1] for one in read)


def count_steps(recipe: Recipe, data: DataSpec) -> int:
    """Optimizer steps of the whole run. ValueError for more epochs of instructions than the plan has counted."""
    train = recipe.train
    if train.max_steps is not None:
        return train.max_steps
    if train.max_tokens is not None:
        return _steps_of(train, train.max_tokens, recipe.data.seq_len)
    assert train.max_epochs is not None
    rows = [source.instruct for source in data.train if source.instruct is not None]
    if not rows:
        return max(1, _steps_of(train, train.max_epochs * count_samples(data.n_tokens, recipe.data.seq_len)))
    return max(1, _steps_of(train, _packs_in(rows[0].packs, train.max_epochs)))


def epochs_before(recipe: Recipe, data: DataSpec, step: int) -> Fraction:
    """Passes over the data in the first `step` steps, as train.max_epochs counts them.

    Of a mixture one pass is as many sequences as all its sources hold.
    """
    read = sequences_before(recipe.train, step)
    if len(data.train) > 1 or data.train[0].instruct is None:
        return Fraction(read, max(1, sum(samples_of(source, recipe.data.seq_len) for source in data.train)))
    packs = data.train[0].instruct.packs or (1,)
    for epoch, count in enumerate(packs):
        if read < count:
            return epoch + Fraction(read, count)
        read -= count
    return len(packs) + Fraction(read, packs[-1])  # those that are not counted: taken to be as long


def is_share_read(recipe: Recipe, data: DataSpec, step: int, share: float) -> bool:
    """Does the last of the first `step` steps complete another such share of an epoch?"""
    each = Fraction(repr(share))
    return epochs_before(recipe, data, step) // each > epochs_before(recipe, data, step - 1) // each


def _packs_in(packs: tuple[int, ...], epochs: float) -> int:
    whole = math.floor(epochs)
    if math.ceil(epochs) > len(packs):
        raise ValueError(
            f"train.max_epochs: {epochs:g}; the sequences of {len(packs)} epochs are counted, and the rows are not "
            "there to count more: bring them back, or give the new length as train.max_steps"
        )
    return sum(packs[:whole]) + (math.ceil((epochs - whole) * packs[whole]) if epochs > whole else 0)


@dataclass(frozen=True)
class Context:
    """The recipe, workload and device of a worker; known before the model is made, and constant."""

    world: World
    recipe: Recipe
    workload: Workload
    sizes: BatchSizes
    max_steps: int
    device: torch.device

    @property
    def share(self) -> int:
        """Sequences of each global batch that this worker takes, where no ramp makes it smaller."""
        return self.sizes.global_batch_size // self.sizes.world_size

    def first_slot(self, step: int) -> int:
        """Of this worker's slots in the global batch of a step."""
        return self.data_rank * (sequences_in(self.recipe.train, step) // self.sizes.world_size)

    def sequence_cuts(self, step: int) -> int:
        """Into how many a sequence is cut in a step, where a ramp has shorter ones."""
        data = self.recipe.data
        return data.seq_len // ramped(data.seq_len_ramp, step, data.seq_len)

    @property
    def data_rank(self) -> int:
        """Which of the shares: workers that share matrices or sequences are neighbours, and take the same one."""
        return self.world.rank // shares_of(self.recipe.parallel)

    @property
    def counts_data(self) -> bool:
        """True for one of the workers that take the same share."""
        return self.world.rank % shares_of(self.recipe.parallel) == 0
