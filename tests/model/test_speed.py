"""Seconds of a step out of measured pieces: on a machine of one speed they are its operations over that speed."""

from __future__ import annotations

import pytest

from launchyard.model.config import ModelConfig
from launchyard.model.cost import causal_flops_per_token, flops_per_token, n_params
from launchyard.model.speed import AttentionRate, BlockRate, Calibration, HeadTime, step_seconds
from launchyard.model.zoo import preset

SPEED = 1e11  # of the machine
WIDTHS = (128, 512)


def machine(**changes: object) -> Calibration:
    blocks = tuple(
        BlockRate(width=width, gated=gated, rate=SPEED, forward=1 / 3) for width in WIDTHS for gated in (True, False)
    )
    pieces: dict[str, object] = {
        "machine": "made up", "date": "2026-11-29", "threads": 1, "matmul_flops": SPEED, "blocks": blocks,
        "attention": (AttentionRate(length=512, rate=SPEED),), "table_seconds": 0.0, "update_seconds": 0.0,
        "heads": tuple(HeadTime(width=width, seconds=6 * width / SPEED) for width in WIDTHS),
    }  # fmt: skip
    return Calibration.model_validate({**pieces, **changes})


def seconds(config: ModelConfig, calibration: Calibration | None = None, **changes: object) -> float:
    sizes: dict[str, object] = {"micro_batch_size": 4, "grad_accum_steps": 1, "seq_len": 512}
    found = step_seconds(config, calibration or machine(), **{**sizes, **changes})
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["pythia-14m", "pythia-70m", "pythia-160m", "smollm2-135m"])
def test_at_one_speed_it_is_operations_over_that_speed(name: str) -> None:
    """Norms and biases, which do not count there, are below a percent."""
    config = preset(name)
    expected = 4 * 512 * flops_per_token(config, 512) / SPEED
    assert seconds(config) == pytest.approx(expected, rel=0.01)


def test_what_is_done_once_a_micro_batch_or_once_a_step() -> None:
    config = preset("pythia-14m")
    slow = machine(update_seconds=1e-9)
    assert seconds(config, slow) - seconds(config) == pytest.approx(1e-9 * n_params(config))
    assert seconds(config, slow, grad_accum_steps=3) == pytest.approx(3 * seconds(config) + 1e-9 * n_params(config))
    tables = machine(table_seconds=1e-9)
    once = seconds(config, tables) - seconds(config)
    thrice = seconds(config, tables, grad_accum_steps=3) - seconds(config, grad_accum_steps=3)
    assert thrice == pytest.approx(3 * once) and once > 0


def test_checkpointed_blocks_run_their_forward_again() -> None:
    config = preset("pythia-70m")
    plain, again = (seconds(config, checkpointing=kind) for kind in ("none", "full"))
    assert plain < again < plain * 4 / 3
    assert seconds(config, checkpointing="full", every=2) == pytest.approx((plain + again) / 2)


def test_speeds_lie_between_those_of_the_widths_beside() -> None:
    rates = [BlockRate(width=width, gated=False, rate=rate, forward=0.3) for width, rate in ((128, 1e10), (512, 4e10))]
    times = [seconds(preset("pythia-70m").model_copy(update={"dim": dim}), machine(blocks=rates)) for dim in (64, 128)]
    assert times[0] < times[1]
    slow, between, fast = (
        seconds(preset("pythia-14m"), machine(blocks=[rates[0].model_copy(update={"rate": rate})]))
        for rate in (1e10, 2e10, 4e10)
    )
    assert slow > between > fast


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "deepseek-v2-lite", "gemma-2-2b", "bloom-560m"])
def test_what_is_like_no_piece_is_not_guessed(name: str) -> None:
    sizes = {"micro_batch_size": 1, "grad_accum_steps": 1, "seq_len": 512}
    assert step_seconds(preset(name), machine(), **sizes) is None
    assert step_seconds(preset("pythia-14m"), machine(), **sizes, checkpointing="op") is None
    assert step_seconds(preset("pythia-14m"), machine(blocks=()), **sizes) is None


def test_a_causal_kernel_does_half_of_the_attention() -> None:
    config = preset("pythia-14m")
    ends = [flops_per_token(config, length) for length in (0, 2048)]
    assert causal_flops_per_token(config, 2048) == pytest.approx(sum(ends) / 2)
