"""One validation: the figures of every set of held-out data. Decides nothing and reports nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launchyard.training.loop.numbers import by_name
from launchyard.training.loop.parts import Parts
from launchyard.training.objectives.own import OwnLoss
from launchyard.training.objectives.with_bytes import LABEL_BYTES, with_bytes
from launchyard.training.sections.validation import MAIN
from launchyard.training.validation.held_out import validation_means


@dataclass(frozen=True)
class Measured:
    """Of one set: its figures by name, and for how many seconds they were measured."""

    means: dict[str, float]
    seconds: float


def measure(
    parts: Parts, interrupted: Callable[[], bool], *, max_batches: int | None = None
) -> dict[str, Measured] | None:
    """All sets or none: None if `interrupted` (asked of all ranks) cut it, in whichever set.

    max_batches: of each set; by default as the recipe has it.
    """
    context = parts.context
    objective = with_bytes(parts.objective, parts.data.byte_lengths() if measures_text(parts) else None)
    found = {}
    for name, reader in parts.data.held_out.items():
        began = time.perf_counter()
        means = validation_means(
            parts.learner.model,
            reader,
            objective,
            sizes=context.sizes,
            data_rank=context.data_rank,
            device=context.device,
            max_batches=max_batches or context.recipe.validation.max_batches,
            interrupted=interrupted,
        )
        if means is None:
            return None
        figures = by_name(objective, means)
        if measures_text(parts):
            figures = with_rates(figures)
        found[name] = Measured(figures, round(time.perf_counter() - began, 3))
    return found


def measures_text(parts: Parts) -> bool:
    """Is the loss in nats per token, as far as we know? A loss of the user's own may be anything."""
    return parts.context.recipe.data.kind != "preference" and not isinstance(parts.objective, OwnLoss)


def with_rates(means: Mapping[str, float]) -> dict[str, float]:
    """The same with the perplexity, and bits per byte where the bytes of a label are there, whose mean is not shown."""
    loss = means["loss"]
    found = {name: value for name, value in means.items() if name != LABEL_BYTES}
    found["perplexity"] = math.exp(loss) if not loss > 700 else math.inf
    if means.get(LABEL_BYTES):
        found["bits_per_byte"] = loss / math.log(2) / means[LABEL_BYTES]
    return found


def judged(found: Mapping[str, Measured]) -> dict[str, float]:
    """All figures as a recipe names them: loss, or NAME.loss of another set than the main one."""
    return {
        figure if name == MAIN else f"{name}.{figure}": value
        for name, measured in found.items()
        for figure, value in measured.means.items()
    }
