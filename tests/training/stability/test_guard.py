"""The guard judges by the updates before a step, and by nothing that a kill or a resume could change."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.training.checkpoint.state import TrainState
from launchyard.training.sections.stability import StabilityConfig
from launchyard.training.stability.guard import Guard, RewindError, UnstableError, taken_back


class Said:
    """Telemetry that keeps what it was told."""

    def __init__(self) -> None:
        self.harms: list[Any] = []

    def update_skipped(self, harm: Any) -> None:
        self.harms.append(harm)


def judge(state: TrainState, losses: list[float], first: int = 1, **config: Any) -> list[bool]:
    telemetry = Said()
    guard = Guard(StabilityConfig(**config), state, telemetry.update_skipped, lambda step: f"samples of step {step}")
    found = [guard.accepts(first + n, torch.tensor([loss]), torch.tensor(1.0)) for n, loss in enumerate(losses)]
    assert [harm.step for harm in telemetry.harms] == [first + n for n, good in enumerate(found) if not good]
    return found


USUAL = [3.0 - 0.01 * n + 0.02 * (-1) ** n for n in range(30)]
SKIP = {"on_spike": "skip", "on_nonfinite": "skip", "budget": 1000}


@settings(max_examples=40, deadline=None)
@given(
    losses=st.lists(st.sampled_from([2.7, 2.71, 2.75, 3.5, 9.0, math.nan, math.inf]), min_size=1, max_size=30),
    cut=st.integers(0, 60),
)
def test_a_resumed_guard_judges_as_the_one_that_went_on(losses: list[float], cut: int) -> None:
    losses = USUAL + losses
    whole = TrainState()
    expected = judge(whole, losses, **SKIP)
    part = TrainState()
    found = judge(part, losses[:cut], **SKIP)
    saved = TrainState.from_json(json.loads(json.dumps(part.to_json())))
    assert found + judge(saved, losses[cut:], first=len(losses[:cut]) + 1, **SKIP) == expected
    assert saved == whole
    assert whole.left_out == [n for n, good in enumerate(expected, start=1) if not good]
    assert all(not good for good, loss in zip(expected, losses, strict=True) if not math.isfinite(loss) or loss > 3.1)


def test_a_gradient_that_is_no_number_counts_too() -> None:
    guard = Guard(StabilityConfig(on_nonfinite="skip"), TrainState(), Said().update_skipped, str)
    assert guard.accepts(1, torch.tensor([2.0]), torch.tensor(1.0))
    assert not guard.accepts(2, torch.tensor([2.0]), torch.tensor(math.inf))


def test_what_the_recipe_does_not_want_is_let_through() -> None:
    assert all(judge(TrainState(), [*USUAL, 90.0], on_nonfinite="skip"))
    assert all(judge(TrainState(), [*USUAL, math.nan], on_spike="skip"))


def test_a_budget_is_of_skips_and_rewinds_of_the_whole_run() -> None:
    state = TrainState(interventions=1)
    assert judge(state, [*USUAL, 9.0], **SKIP | {"budget": 2})[-1] is False
    with pytest.raises(UnstableError, match=r"step 40: loss 9.0000 .*stability.budget, 2 .*samples of step 40"):
        judge(state, [9.0], first=40, **SKIP | {"budget": 2})
    assert judge(state, [math.nan], first=41, **SKIP | {"budget": 2}) == [True]  # the loop fails by it


def test_a_rewind_takes_back_updates_that_were_made() -> None:
    assert taken_back(30, 4, []) == [27, 28, 29, 30]
    assert taken_back(31, 4, [27, 28, 29, 30]) == [24, 25, 26, 31]  # one after another goes back further
    assert taken_back(3, 10, []) == [1, 2, 3]
    with pytest.raises(RewindError) as caught:
        judge(TrainState(), [*USUAL, 9.0], on_spike="rewind", rewind_steps=3)
    assert caught.value.steps == [29, 30, 31] and caught.value.harm.usual == pytest.approx(2.8, abs=0.1)
