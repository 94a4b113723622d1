"""Every schedule keeps its marks: the peak after the warmup, its end, and its bounds in between."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.training.batching import sequences_before
from launchyard.training.optim.schedule import lr_at
from launchyard.training.sections.optimizer import OptimizerConfig, ScheduleConfig, ScheduleName
from launchyard.training.sections.train import TrainConfig

ONE = OptimizerConfig(lr=1.0)
NAMES = get_args(ScheduleName)


def trace(max_steps: int, **keys: Any) -> list[float]:
    """The rate of update number 1, 2, …"""
    schedule = ScheduleConfig(**keys)
    return [lr_at(step, max_steps=max_steps, optimizer=ONE, schedule=schedule) for step in range(max_steps)]


@given(
    name=st.sampled_from(NAMES),
    max_steps=st.integers(1, 300),
    warmup=st.one_of(st.just(0), st.integers(0, 400), st.floats(0, 0.99)),
    min_lr=st.floats(0, 1),
)
def test_it_rises_to_the_peak_and_never_again(name: str, max_steps: int, warmup: float, min_lr: float) -> None:
    rates = trace(max_steps, name=name, warmup_steps=warmup, min_lr=min_lr)
    steps = round(warmup * max_steps) if 0 < warmup < 1 else int(warmup)
    assert rates[:steps] == pytest.approx([number / steps for number in range(1, min(steps, max_steps) + 1)])
    after = rates[steps:]
    assert after == sorted(after, reverse=True)
    assert all(min_lr - 1e-12 <= rate <= 1 + 1e-12 for rate in after)
    if after and name not in ("constant", "inverse-sqrt"):
        assert after[-1] == pytest.approx(min_lr, abs=1e-12)


def test_wsd_is_constant_until_its_decay() -> None:
    rates = trace(100, name="wsd", warmup_steps=10, decay_share=0.3)
    assert set(rates[9:70]) == {1.0}
    assert rates[70:] == pytest.approx([1 - number / 30 for number in range(1, 31)])
    assert trace(100, name="wsd", decay_share=0.3, decay_shape="sqrt")[84] == pytest.approx(1 - math.sqrt(0.5))
    assert trace(100, name="wsd", decay_share=0.3, decay_shape="cosine")[84] == pytest.approx(0.5)


def test_a_decay_that_is_longer_than_what_the_warmup_leaves_begins_lower() -> None:
    assert trace(10, name="wsd", warmup_steps=5, decay_share=1.0)[5] == pytest.approx(0.4)


def test_inverse_sqrt_does_not_know_its_end() -> None:
    rates = trace(400, name="inverse-sqrt", warmup_steps=4, min_lr=0.15)
    assert rates[3] == 1.0 and rates[15] == pytest.approx(0.5) and rates[399] == 0.15
    assert trace(40, name="inverse-sqrt", warmup_steps=4) == trace(400, name="inverse-sqrt", warmup_steps=4)[:40]
    assert trace(4, name="inverse-sqrt")[:4] == pytest.approx([1, 2**-0.5, 3**-0.5, 0.5])


def test_polynomial_is_the_remaining_share_to_a_power() -> None:
    assert trace(100, name="polynomial", power=2.0)[49] == pytest.approx(0.25)
    assert trace(30, name="polynomial") == pytest.approx(trace(30, name="linear"))


def test_by_tokens_a_step_counts_as_what_it_reads() -> None:
    """Half of all tokens is half of a cosine, whatever steps have read them; without a ramp it is the same by steps."""
    train = TrainConfig(max_steps=20, global_batch_size=12, batch_size_ramp=((0, 4), (9, 12)))
    consumed = partial(sequences_before, train)  # 36, then 12 a step: 168
    schedule = ScheduleConfig(name="cosine", by="tokens", warmup_steps=0)
    rates = [lr_at(step, max_steps=20, optimizer=ONE, schedule=schedule, consumed=consumed) for step in range(20)]
    assert rates[13 - 1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 84 / 168)))
    plain = TrainConfig(max_steps=20, global_batch_size=12)
    for name in NAMES:
        for warmup in (0, 3, 0.25):
            both = [
                lr_at(
                    step,
                    max_steps=20,
                    optimizer=ONE,
                    schedule=ScheduleConfig(name=name, by=by, warmup_steps=warmup),
                    consumed=partial(sequences_before, plain),
                )
                for by in ("steps", "tokens")
                for step in range(20)
            ]
            assert both[:20] == pytest.approx(both[20:], abs=1e-12)


def test_a_warmup_by_tokens_ends_at_its_step() -> None:
    train = TrainConfig(max_steps=20, global_batch_size=12, batch_size_ramp=((0, 4), (2, 12)))
    schedule = ScheduleConfig(name="constant", by="tokens", warmup_steps=4)
    consumed = partial(sequences_before, train)
    rates = [lr_at(step, max_steps=20, optimizer=ONE, schedule=schedule, consumed=consumed) for step in range(5)]
    assert rates == pytest.approx([4 / 32, 8 / 32, 20 / 32, 1, 1])
