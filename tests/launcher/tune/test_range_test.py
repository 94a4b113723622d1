"""Reading a range test: where it diverges, what noise is not, and which rate is suggested for which reason."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.launcher.tune.range_test import RatePoint, diverged_at, smoothed, suggest


def curve_of(divergence: float, *, noise: float = 0.0, seed: int = 0) -> list[RatePoint]:
    """Flat at 8, falls to 5 around 1e-3, and rises from `divergence` on."""
    draw = random.Random(seed)
    points = []
    for step in range(100):
        lr = 10 ** (-6 + 6 * step / 99)
        loss = 8 - 3 / (1 + (1e-3 / lr) ** 2) + 6 * max(0.0, math.log10(lr / divergence)) ** 2
        points.append((lr, loss * (1 + draw.gauss(0, noise))))
    return points


def losses(points: list[RatePoint]) -> list[float]:
    return [loss for _, loss in points]


@given(st.floats(0.02, 0.2), st.integers(0, 1000))
def test_a_divergence_is_found_behind_where_it_begins(divergence: float, seed: int) -> None:
    points = curve_of(divergence, noise=0.01, seed=seed)
    found = diverged_at(losses(points))
    assert found is not None
    assert divergence < points[found][0] < 20 * divergence
    told = suggest(points)
    assert told.lr is not None and 1e-5 < told.lr < divergence


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1, 0.3])
def test_noise_is_no_divergence(noise: float) -> None:
    """Of a loss that stays where it is one in a hundred may be taken for one."""
    draw = random.Random(1)
    found = [diverged_at([3.0 * (1 + draw.uniform(-noise, noise)) for _ in range(100)]) for _ in range(400)]
    assert sum(one is not None for one in found) <= 4


def test_a_loss_that_is_no_number_is_one() -> None:
    values = losses(curve_of(0.1)[:60])
    assert diverged_at(values) is None
    assert diverged_at([*values, math.nan]) == 60
    assert len(smoothed([*values, math.inf, 1.0])) == 60


@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=50))
def test_means_lie_among_what_they_are_of(values: list[float]) -> None:
    for number, mean in enumerate(smoothed(values), start=1):
        assert min(values[:number]) - 1e-9 <= mean <= max(values[:number]) + 1e-9


def test_the_reason_is_told() -> None:
    usual = suggest(curve_of(0.1))
    assert usual.lr == usual.steepest and "falls fastest" in usual.why
    early = suggest([*curve_of(0.1)[:50], (1.2e-3, math.nan)])
    assert early.lr == pytest.approx(1.2e-4) and "a tenth" in early.why
    endless = suggest(curve_of(1e9))
    assert endless.divergence is None and "diverges nowhere" in endless.why
    flat = suggest([(lr, 5.0) for lr, _ in curve_of(1.0)])
    assert flat.lr is None and "hardly falls" in flat.why
