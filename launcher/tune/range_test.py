"""Reading a learning-rate range test (Smith 2017): smoothed losses, where they diverge, and what to use. Pure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SMOOTHING = 0.9  # share of the running mean that each step leaves
# It has diverged where the smoothed loss is above its best by all three: this share of what was gained before, this
# share of the best, and so many times the usual difference of two losses that follow each other.
OF_GAIN = 0.25
OF_BEST = 0.05
OF_NOISE = 2.5
LEAST_POINTS = 8  # before which a mean is not worth much
LEAST_FALL = 0.01  # of the loss; less is as good as none
BELOW_DIVERGENCE = 10.0

RatePoint = tuple[float, float]  # learning rate, loss


@dataclass(frozen=True)
class Suggestion:
    """Learning rates, and the one to begin with. None where the curve has no such point."""

    lr: float | None
    why: str
    steepest: float | None
    divergence: float | None


def smoothed(losses: Sequence[float]) -> list[float]:
    """Running means from the past alone, without a bias to 0 at the beginning; up to one that is no number."""
    found: list[float] = []
    mean = 0.0
    for number, loss in enumerate(losses, start=1):
        if not math.isfinite(loss):
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**number))
    return found


def diverged_at(losses: Sequence[float]) -> int | None:
    """The number of the point at which the smoothed losses have left their best; one that is no number has, too."""
    means = smoothed(losses)
    first = LEAST_POINTS - 1
    best = math.inf
    for number, mean in enumerate(means):
        if number < first:
            continue
        best = min(best, mean)
        rise = mean - best
        if rise <= max(OF_GAIN * (means[first] - best), OF_BEST * abs(best)):
            continue
        if rise > OF_NOISE * _noise(losses[: number + 1]):
            return number
    return len(means) if len(means) < len(losses) else None


def _noise(losses: Sequence[float]) -> float:
    """The usual difference of two losses that follow each other; few that are wild do not change it."""
    return statistics.median(abs(after - before) for before, after in itertools.pairwise(losses))


def suggest(points: Sequence[RatePoint]) -> Suggestion:
    """What to use: of the steepest descent and a tenth of where it diverges the smaller one."""
    end = diverged_at([loss for _, loss in points])
    divergence = None if end is None else points[min(end, len(points) - 1)][0]
    means = smoothed([loss for _, loss in points])[:end]
    steepest = _steepest([rate for rate, _ in points], means)
    tenth = None if divergence is None else divergence / BELOW_DIVERGENCE
    if tenth is not None and (steepest is None or tenth <= steepest):
        return Suggestion(tenth, "a tenth of where it diverges", steepest, divergence)
    if steepest is None:
        why = "the loss hardly falls anywhere; try other bounds, or more steps"
        return Suggestion(None, why, None, divergence)
    why = "where the loss falls fastest" + ("" if divergence else "; it diverges nowhere up to the last rate")
    return Suggestion(steepest, why, steepest, divergence)


def _steepest(rates: Sequence[float], means: Sequence[float]) -> float | None:
    """The rate at which the means fall most for each factor of the rate; None if there are few, or they hardly fall."""
    first = LEAST_POINTS - 1
    if len(means) <= LEAST_POINTS:
        return None
    lowest = means.index(min(means[first:]), first)
    if means[first] - means[lowest] < LEAST_FALL * abs(means[first]):
        return None
    falls = (after - before for before, after in itertools.pairwise(means[first : lowest + 1]))
    return min(zip(falls, rates[first + 1 : lowest + 1], strict=True))[1]
