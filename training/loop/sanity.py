"""A few batches of validation before the first step of a run: what would fail at its first validation fails then."""

from __future__ import annotations

import math

from launchyard.training.loop.agree import agree_while_waiting
from launchyard.training.loop.parts import Parts
from launchyard.training.validation.held_out import validation_means


def check_validation(parts: Parts) -> None:
    """Its error stops the run; ValueError if the loss is no number. Its figures are recorded nowhere."""
    context = parts.context
    batches = context.recipe.validation.sanity_batches
    held_out = parts.data.held_out
    if batches is None or held_out is None or parts.learner.state.step > 0:
        return
    clock = parts.telemetry.clock
    clock.enter("validation")
    parts.telemetry.exporter.state("validating")
    means = validation_means(
        parts.learner.model,
        held_out,
        parts.objective,
        sizes=context.sizes,
        data_rank=context.data_rank,
        device=context.device,
        max_batches=batches,
        interrupted=lambda: agree_while_waiting(parts, False)[1] is not None,  # the first step hears of it, too
    )
    clock.enter("other")
    if means is not None and not math.isfinite(means[0]):
        raise ValueError(
            f"validation.sanity_batches: the loss on held-out data is {means[0]} before the first step; look at "
            "model.init_from, the held-out data and train.precision"
        )
