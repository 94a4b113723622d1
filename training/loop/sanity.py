"""A few batches of validation before the first step of a run: what would fail at its first validation fails then."""

from __future__ import annotations

import math

from launchyard.training.loop.agree import agree_while_waiting
from launchyard.training.loop.measure import measure
from launchyard.training.loop.parts import Parts


def check_validation(parts: Parts) -> None:
    """Its error stops the run; ValueError if the loss is no number. Its figures are recorded nowhere."""
    batches = parts.context.recipe.validation.sanity_batches
    if batches is None or parts.learner.state.step > 0:
        return
    clock = parts.telemetry.clock
    clock.enter("validation")
    parts.telemetry.exporter.state("validating")
    # The first step hears of a stop, too.
    found = measure(parts, lambda: agree_while_waiting(parts, False)[1] is not None, max_batches=batches)
    clock.enter("other")
    for name, measured in (found or {}).items():
        if not math.isfinite(loss := measured.means["loss"]):
            raise ValueError(
                f"validation.sanity_batches: the loss on held-out data ({name}) is {loss} before the first step; look "
                "at model.init_from, the held-out data and train.precision"
            )
