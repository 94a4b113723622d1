"""Judges a step by its loss and gradient norm before its update is made. Knows no model and no checkpoint.

All ranks judge the same numbers, so they agree without a word. What is judged and what follows depends on nothing but
the updates that were made before, so a run that was killed and resumed judges the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Literal

from torch import Tensor

from launchyard.training.checkpoint.state import TrainState
from launchyard.training.sections.stability import StabilityConfig
from launchyard.training.telemetry.spikes import UsualLoss
from launchyard.training.telemetry.telemetry import Harm


class UnstableError(Exception):
    """The loss has jumped up more often than the recipe puts up with."""


class RewindError(Exception):
    """Training is to go on from before the first of `steps`, and to pass over them. No fault: the loop goes back."""

    def __init__(self, harm: Harm, steps: list[int]) -> None:
        super().__init__(f"step {harm.step}: back to step {steps[0] - 1}")
        self.harm = harm
        self.steps = steps


class Guard:
    """Of one run. `on_skip` is told of an update that was left out; `data_of` names the samples of a step, counted
    from 1."""

    def __init__(
        self,
        config: StabilityConfig,
        state: TrainState,
        on_skip: Callable[[Harm], None],
        data_of: Callable[[int], str],
    ) -> None:
        self._config = config
        self._state = state
        self._on_skip = on_skip
        self._data_of = data_of

    def accepts(self, step: int, means: Tensor, norm: Tensor) -> bool:
        """May this step's update be made? Notes it among those left out if not; RewindError to go back.

        A loss that is no number is let through where the recipe wants the run to fail, or has no budget left: the loop
        raises its error. UnstableError for a spike without a budget.
        """
        loss = float(means[0])
        size = float(norm)
        usual = self._usual()
        cause = self._cause(loss, size, usual)
        if cause is None:
            usual.learn(loss)
            self._state.usual_loss = usual.to_json()
            return True
        action = self._config.on_nonfinite if cause == "nonfinite" else self._config.on_spike
        if action == "fail" or not self._has_budget(step, loss, cause, usual):
            return True
        harm = Harm(step, cause, loss, size, self._data_of(step), usual.mean if usual.ready else None)
        if action == "rewind":
            raise RewindError(harm, taken_back(step, self._config.rewind_steps, self._state.left_out))
        self._state.interventions += 1
        self._state.left_out = [*self._state.left_out, step]
        self._on_skip(harm)
        return False

    def _usual(self) -> UsualLoss:
        config = self._config
        return UsualLoss.from_json(self._state.usual_loss, factor=config.spike_factor, window=config.spike_window)

    def _cause(self, loss: float, norm: float, usual: UsualLoss) -> Literal["nonfinite", "spike"] | None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return "nonfinite"
        return "spike" if self._config.on_spike != "ignore" and usual.is_far_below(loss) else None

    def _has_budget(self, step: int, loss: float, cause: str, usual: UsualLoss) -> bool:
        if self._state.interventions < self._config.budget:
            return True
        if cause == "nonfinite":
            return False
        raise UnstableError(
            f"step {step}: loss {loss:.4f} is a spike (before it {usual.mean:.4f}), and stability.budget, "
            f"{self._config.budget} skips and rewinds in all, is spent; its data: {self._data_of(step)}. Try a lower "
            "optimizer.lr, a smaller train.max_grad_norm, a larger stability.spike_factor or stability.budget"
        )


def taken_back(step: int, n: int, skipped: Collection[int]) -> list[int]:
    """The last `n` steps up to this one that were not left out already; fewer at the beginning of a run."""
    found = [number for number in range(step, 0, -1) if number not in skipped or number == step]
    return sorted(found[:n])
