"""Rounding of updated weights: right on average, the same for any cut, and resumed bit for bit."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from launchyard.training.optim.base import Optimizer
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.precision.rounded import RoundedOptimizer, Rounding, round_by_chance
from launchyard.training.sections.optimizer import OptimizerConfig
from launchyard.training.spec import DataSpec
from tests.support.small_runs import final_weights, history, make_run, run_workers, write_data

ROUNDINGS: tuple[Rounding, ...] = ("stochastic", "compensated", "nearest")


def rounded(wide: Tensor, key: str = "0/1/w") -> Tensor:
    out = torch.empty_like(wide, dtype=torch.bfloat16)
    round_by_chance(out, wide, (tuple(wide.shape), (0,) * wide.ndim), key=key)
    return out.float()


def test_chance_takes_one_of_two_neighbours_and_is_right_on_average() -> None:
    value = 1 + 0.3 / 128  # neighbours are 1 and 1 + 1 / 128
    for sign in (1, -1):
        found = rounded(torch.full((1000, 100), sign * value)) * sign
        assert set(found.unique().tolist()) == {1.0, 1 + 1 / 128}
        assert float(found.mean()) == pytest.approx(value, abs=5 * 0.46 / 128 / 100000**0.5)


def test_what_bf16_holds_is_not_rounded() -> None:
    exact = torch.randn(500, 3).bfloat16().float()
    exact[0] = torch.tensor([0.0, torch.inf, -torch.inf])
    assert torch.equal(rounded(exact), exact)


def test_chance_differs_by_step_by_parameter_and_by_place() -> None:
    wide = torch.full((64, 64), 1 + 0.5 / 128)
    first = rounded(wide)
    assert torch.equal(first, rounded(wide))
    assert not torch.equal(first, rounded(wide, "0/2/w")) and not torch.equal(first, rounded(wide, "0/1/v"))
    ups = (first > 1).float()
    for axis in (0, 1):  # rows and columns are no copies of each other
        assert (
            float(ups.mean(axis).min()) > 0.3 and float(ups.mean(axis).max()) < 0.75 and float(ups.mean(axis).std()) > 0
        )


def test_any_cut_is_rounded_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.randn(37, 5, generator=torch.Generator().manual_seed(0))
    whole = rounded(wide)
    monkeypatch.setattr("launchyard.training.precision.rounded._SLICE", 17)
    assert torch.equal(rounded(wide), whole)
    for start, stop in ((0, 13), (13, 26), (26, 37)):
        out = torch.empty(stop - start, 5, dtype=torch.bfloat16)
        round_by_chance(out, wide[start:stop], ((37, 5), (start, 0)), key="0/1/w")
        assert torch.equal(out.float(), whole[start:stop])
    out = torch.empty(20, 2, dtype=torch.bfloat16)
    round_by_chance(out, wide[7:27, 3:].contiguous(), ((37, 5), (7, 3)), key="0/1/w")
    assert torch.equal(out.float(), whole[7:27, 3:])


class _Sum(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(64, 32).to(dtype))


def moved(rounding: Rounding | None) -> float:
    """How far the mean weight goes in many small steps; None: in fp32."""
    model = _Sum(torch.float32 if rounding is None else torch.bfloat16)
    make = partial(make_optimizer, config=OptimizerConfig(weight_decay=0.0))
    optimizer = make(model) if rounding is None else RoundedOptimizer(model, make, rounding=rounding, seed=0)
    start = model.weight.detach().double().mean()
    for number in range(1, 201):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step(number, lr=1e-5)  # a thousandth of a digit of most weights
    return float(model.weight.detach().double().mean() - start)


def test_small_updates_count_unless_they_are_rounded_to_the_nearest() -> None:
    exact = moved(None)
    assert moved("stochastic") == pytest.approx(exact, rel=0.2)
    assert moved("compensated") == pytest.approx(exact, rel=0.15)  # of the weights without what is kept
    assert abs(moved("nearest")) < 0.3 * abs(exact)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd", "lion", "adamw-8bit"])
def test_a_kept_rest_makes_weights_of_fp32(name: str) -> None:
    """The same steps, bit for bit, as far as the weights' first values are the same."""
    config = OptimizerConfig.model_validate({"name": name})
    start = _Sum(torch.bfloat16)
    plain, kept = _Sum(torch.float32), _Sum(torch.bfloat16)
    plain.weight.data = start.weight.detach().float()
    optimizer = make_optimizer(plain, config)
    rounding = RoundedOptimizer(kept, partial(make_optimizer, config=config), rounding="compensated", seed=0)
    for number in range(1, 6):
        both: tuple[tuple[nn.Module, Optimizer], ...] = ((plain, optimizer), (kept, rounding))
        for model, one in both:
            gradient = torch.randn(64, 32, generator=torch.Generator().manual_seed(number)).bfloat16()
            model.weight.grad = gradient.to(model.weight.dtype)
            one.step(number, lr=1e-3)
    rest = rounding.state(kept.weight)["compensation"].tensor
    whole = kept.weight.detach().float().view(torch.int32) + rest
    assert torch.equal(whole.view(torch.float32), plain.weight.detach())
    assert torch.equal(kept.weight.detach(), plain.weight.detach().bfloat16())


def test_no_copy_in_fp32_stays_between_updates() -> None:
    model = _Sum(torch.bfloat16)
    before = held_bytes()
    make = partial(make_optimizer, config=OptimizerConfig())
    optimizer = RoundedOptimizer(model, make, rounding="stochastic", seed=0)
    for number in (1, 2):
        moments = sum(entry.tensor.nbytes for entry in optimizer.state(model.weight).values())
        assert moments == 8 * model.weight.numel() and held_bytes() - before < moments + 64
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step(number, lr=1e-3)
        optimizer.zero_grad()


def held_bytes() -> int:
    """Of all storages that any tensor refers to."""
    gc.collect()
    storages = {}
    for one in gc.get_objects():
        if type(one) in (Tensor, nn.Parameter) and one.device.type == "cpu":
            storages[one.untyped_storage()._cdata] = one.untyped_storage().nbytes()
    return sum(storages.values())


# -- whole runs ---
@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("rounding", ["stochastic", pytest.param("compensated", marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_run_that_was_not(tmp_path: Path, data: DataSpec, rounding: Rounding) -> None:
    overrides = {"train.precision": "bf16-true", "train.bf16_rounding": rounding, "train.max_steps": 12}
    overrides |= {"schedule.name": "constant", "validation.every_steps": None}
    expected = make_run(tmp_path / "undisturbed", data, overrides)
    run = make_run(tmp_path / "resumed", data, overrides)
    run_workers(expected, 2)
    run_workers(run, 2, {"train.max_steps": 7})
    run_workers(run, 2, {"train.max_steps": 12})
    assert history(run) == history(expected)
    mine, theirs = final_weights(run), final_weights(expected)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs) and mine.keys() == theirs.keys()
    assert {str(tensor.dtype) for key, tensor in mine.items() if key.startswith("model.")} == {"torch.bfloat16"}
    assert any(key.endswith(".compensation") for key in mine) == (rounding == "compensated")


@pytest.mark.slow
def test_one_worker_and_two_make_the_same_run(tmp_path: Path, data: DataSpec) -> None:
    """But for what products in bf16 lose, which differs by the rows in them; chance is the same for both."""
    overrides = {"train.precision": "bf16-true"}
    one, two = (make_run(tmp_path / str(n), data, overrides) for n in (1, 2))
    run_workers(one, 1)
    run_workers(two, 2)
    for mine, theirs in zip(history(one), history(two), strict=True):
        assert mine[1] == pytest.approx(theirs[1], rel=1e-2) and mine[3:] == theirs[3:]
