"""What a validation decides: which checkpoints are among the best, and does the run end early. Pure; light.

All of it follows from the figures so far, which are the same on every rank and are saved with the state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from launchyard.training.sections.checkpoint import CheckpointConfig
from launchyard.training.sections.early_stopping import EarlyStoppingConfig
from launchyard.training.sections.validation import prefers_high

Best = list[tuple[int, float]]  # (step, figure), the best first


def ranked(best: Sequence[tuple[int, float]], step: int, means: Mapping[str, float], config: CheckpointConfig) -> Best:
    """The best steps with this one among them, if it is one; of equals the earlier. What is no number is none."""
    if not config.keep_best or not math.isfinite(value := means[config.best_metric]):
        return list(best)
    sign = -1.0 if prefers_high(config.best_metric, config.best_mode) else 1.0
    others = [(one, figure) for one, figure in best if one != step]
    return sorted([*others, (step, value)], key=lambda entry: (sign * entry[1], entry[0]))[: config.keep_best]


@dataclass(frozen=True)
class Patience:
    """best: the figure that the next ones must beat; waited: validations since then; last: the newest figure, None
    before there is one, and where it is no number (finite is false).
    """

    best: float | None = None
    waited: int = 0
    last: float | None = None
    finite: bool = True

    def after(self, means: Mapping[str, float], config: EarlyStoppingConfig) -> Patience:
        value = means[config.metric]
        if self._is_better(value, config):
            return Patience(value, 0, value)
        finite = math.isfinite(value)
        return replace(self, waited=self.waited + 1, last=value if finite else None, finite=finite)

    def _is_better(self, value: float, config: EarlyStoppingConfig) -> bool:
        if not math.isfinite(value) or self.best is None:
            return math.isfinite(value)
        gain = value - self.best if prefers_high(config.metric, config.mode) else self.best - value
        return gain > config.min_delta

    def verdict(self, config: EarlyStoppingConfig) -> str | None:
        """The reason to end, in words; None to go on."""
        name = config.metric
        if config.finite and not self.finite:
            return f"validation {name} is not a finite number"
        high = prefers_high(name, config.mode)
        if self.last is not None and config.threshold is not None and _reaches(self.last, config.threshold, high):
            return f"validation {name} {self.last:.4g} has reached the threshold {config.threshold:g}"
        if self.last is not None and config.divergence is not None and not _reaches(self.last, config.divergence, high):
            return f"validation {name} {self.last:.4g} is worse than {config.divergence:g}"
        if self.waited >= config.patience:
            best = "no figure" if self.best is None else f"{self.best:.4g}"
            return f"validation {name} has not improved on {best} for {self.waited} validations"
        return None


def _reaches(value: float, limit: float, high: bool) -> bool:
    return value >= limit if high else value <= limit
