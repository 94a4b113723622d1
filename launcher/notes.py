"""What may surprise about a plan and is no error, in words. Pure: reads no file and asks no machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from launcher.snapshot import redact
from training.config import DataSpec, Recipe, count_samples

if TYPE_CHECKING:
    from launcher.plan import Plan

MANY_EPOCHS = 4  # up to here repeated tokens are nearly as good as new ones (Muennighoff et al. 2023)


def surprises(plan: Plan, recipe: Recipe) -> Iterator[str]:
    needed, available = plan.memory["total"], plan.memory_available
    if available is not None and needed > available:
        yield (
            f"about {needed / 1e9:.1f} GB a worker, but there are {available / 1e9:.1f}: it may not fit; try "
            "train.micro_batch_size=1 or parallel.activation_checkpointing=full"
        )
    warmup = recipe.schedule.warmup_steps
    if warmup >= 1 and warmup > plan.max_steps:
        yield f"warmup_steps {warmup} is longer than the run of {plan.max_steps} steps: lr never reaches its peak"
    yield from _of_small_data(plan.data, recipe)
    if len(plan.data.train) > 1:
        yield from _of_a_mixture(plan, recipe)


def _of_small_data(spec: DataSpec, recipe: Recipe) -> Iterator[str]:
    for source, share in zip(spec.train, spec.shares, strict=True):
        count = count_samples(source.n_tokens, recipe.data.seq_len)
        if count < share * recipe.train.global_batch_size:
            alone = len(spec.train) == 1
            what = "the data" if alone else redact(source.folder)
            of = "one global batch" if alone else "its share of a global batch"
            yield f"{what} holds {count} sequences, fewer than {of}: it repeats within a step"


def _of_a_mixture(plan: Plan, recipe: Recipe) -> Iterator[str]:
    spec = plan.data
    for source, passes in zip(spec.train, plan.epochs, strict=True):
        if passes > MANY_EPOCHS:
            yield f"{redact(source.folder)} is read {passes:.3g} times over; more than {MANY_EPOCHS} seldom help"
    held = {source.folder for source in spec.validation}
    unseen = [one.folder for one in spec.train if f"{os.path.dirname(one.folder)}/validation" not in held]
    if unseen and len(unseen) < len(spec.train):
        yield f"validation sees nothing of {', '.join(map(redact, unseen))}"
    if len(spec.validation) > 1 and recipe.validation.max_batches is not None:
        yield "validation.max_batches measures the first batches only: those of the first sources"
