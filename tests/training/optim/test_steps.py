"""The steps of each optimizer are those of torch's own class, or of its paper's equations in fp64."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from launchyard.training.optim.adamw_8bit import read_moment, write_moment
from launchyard.training.optim.base import parameter_groups
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.optim.state_size import CODED_BLOCK, SHORTEST_ROW, is_hidden
from tests.training.optim.toy import FULL, GROUPS, config_of, give_gradients, make_steps, toy, weights_of

STEPS = range(1, 6)


def by_torch(make: Callable[[list[dict[str, Any]]], Iterable[torch.optim.Optimizer]], **keys: Any) -> dict[str, Tensor]:
    model = toy()
    names = {p: name for name, p in model.named_parameters()}
    groups = [
        {"params": [p for p in group.parameters if p in names], "weight_decay": group.weight_decay}
        for group in parameter_groups(model, keys.get("weight_decay", 0.1))
    ]
    theirs = list(make(groups))
    for step in STEPS:
        give_gradients(model, step)
        for optimizer in theirs:
            for group in optimizer.param_groups:
                group["lr"] = 0.02 / step
            optimizer.step()
    return weights_of(model)


def by_us(name: str, **keys: Any) -> dict[str, Tensor]:
    model = toy()
    optimizer = make_optimizer(model, config_of(name, **keys))
    optimizer.begin(resumed=False)
    make_steps(model, optimizer, STEPS)
    return weights_of(model)


def assert_equal(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []


@pytest.mark.parametrize("low_memory", [False, True])
def test_adafactor_is_that_of_torch(low_memory: bool) -> None:
    """With LightGPT's decay; torch's keeps 3-d tensors as stacks of matrices, as we do."""
    theirs = by_torch(lambda groups: [torch.optim.Adafactor(groups, beta2_decay=-0.8)])
    assert_equal(by_us("adafactor", low_memory=low_memory), theirs)


@pytest.mark.parametrize("keys", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_sgd_is_that_of_torch(keys: dict[str, Any]) -> None:
    theirs = by_torch(lambda groups: [torch.optim.SGD(groups, **keys)])
    assert_equal(by_us("sgd", **{"momentum": 0.0, "nesterov": False, **keys}), theirs)


def split_for_muon(
    groups: list[dict[str, Any]], names: dict[int, str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    hidden = [{**g, "params": [p for p in g["params"] if is_hidden(names[id(p)], p.shape)]} for g in groups]
    rest = [{**g, "params": [p for p in g["params"] if not is_hidden(names[id(p)], p.shape)]} for g in groups]
    return [g for g in hidden if g["params"]], [g for g in rest if g["params"]]


@pytest.mark.parametrize("scale", ["match-adamw", "original"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_that_of_torch(scale: str, nesterov: bool) -> None:
    """Beside torch's AdamW; of experts, which torch's refuses, each is a matrix of its own."""
    model = toy()
    mine = by_us("muon", update_scale=scale, nesterov=nesterov)
    experts = [name for name in mine if ".experts." in name]
    singles = {
        f"{name}.{row}": nn.Parameter(whole[row].detach().clone())
        for name, whole in model.named_parameters()
        if name in experts
        for row in range(4)
    }
    others = {name: p for name, p in model.named_parameters() if name not in experts}
    hidden = [p for name, p in others.items() if is_hidden(name, p.shape)] + [*singles.values()]
    matrices = [others["embed.weight"], others["lm_head.weight"]]
    vectors = [p for name, p in others.items() if p.ndim == 1]
    assert len(hidden) + len(matrices) + len(vectors) == len(others) + len(singles)
    theirs = [
        torch.optim.Muon(hidden, adjust_lr_fn={"match-adamw": "match_rms_adamw"}.get(scale, scale), nesterov=nesterov),
        torch.optim.AdamW(
            [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
            weight_decay=0.1,
            betas=(0.9, 0.95),
            fused=True,
        ),
    ]
    for step in STEPS:
        give_gradients(model, step)
        for name, p in singles.items():
            whole, _, row = name.rpartition(".")
            p.grad = model.get_parameter(whole).grad[int(row)].clone()
        for optimizer in theirs:
            for group in optimizer.param_groups:
                group["lr"] = 0.02 / step
            optimizer.step()
    for name, p in others.items():
        assert torch.equal(mine[name], p), name
    for name, p in singles.items():
        whole, _, row = name.rpartition(".")
        torch.testing.assert_close(mine[whole][int(row)], p.detach(), rtol=0, atol=2e-3)  # bf16, multiplied as a stack


def in_fp64(update: Callable[[Tensor, Tensor, float, int, float, dict[str, Tensor]], Tensor]) -> dict[str, Tensor]:
    """Weights after the same steps; update(weight, grad, lr, step, decay, memory) is a new weight, all in fp64."""
    model = toy()
    decays = {p: group.weight_decay for group in parameter_groups(model, 0.1) for p in group.parameters}
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    memory: dict[str, dict[str, Tensor]] = {name: {} for name in weights}
    for step in STEPS:
        give_gradients(model, step)
        for name, p in model.named_parameters():
            weights[name] = update(weights[name], p.grad.double(), 0.02 / step, step, decays[p], memory[name])
    return {name: weight.float() for name, weight in weights.items()}


def assert_near(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, weight in theirs.items():
        torch.testing.assert_close(
            mine[name], weight, rtol=2e-5, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_lion_is_the_papers_algorithm_2() -> None:
    def update(w: Tensor, g: Tensor, lr: float, step: int, decay: float, memory: dict[str, Tensor]) -> Tensor:
        m = memory.get("m", torch.zeros_like(w))
        c = 0.9 * m + 0.1 * g
        memory["m"] = 0.99 * m + 0.01 * g
        return w - lr * (c.sign() + decay * w)

    assert_near(by_us("lion"), in_fp64(update))


def test_schedule_free_adamw_is_the_papers_algorithm_1() -> None:
    """y is where gradients are taken, x is the model."""

    def update(y: Tensor, g: Tensor, lr: float, step: int, decay: float, memory: dict[str, Tensor]) -> Tensor:
        x, z = memory.get("x", y), memory.get("z", y)
        v = 0.999 * memory.get("v", torch.zeros_like(y)) + 0.001 * g * g
        z = z - lr * (g / ((v / (1 - 0.999**step)).sqrt() + 1e-8) + decay * y)
        largest = max(lr, float(memory.get("largest", torch.tensor(0.0))))
        total = memory.get("total", torch.tensor(0.0, dtype=torch.float64)) + largest**2
        x = x + largest**2 / total * (z - x)
        memory.update(x=x, z=z, v=v, largest=torch.tensor(largest, dtype=torch.float64), total=total)
        averages[id(memory)] = x
        return 0.1 * z + 0.9 * x

    averages: dict[int, Tensor] = {}
    expected = in_fp64(update)
    model = toy()
    optimizer = make_optimizer(model, config_of("adamw-schedule-free"))
    optimizer.begin(resumed=False)
    make_steps(model, optimizer, STEPS)
    before = weights_of(model)
    assert_near(before, expected)
    with optimizer.evaluating():
        evaluated = weights_of(model)
    assert_near(evaluated, {name: x.float() for name, x in zip(evaluated, averages.values(), strict=True)})
    assert_equal(weights_of(model), before)


def test_8_bits_follow_adamw() -> None:
    """Nothing is lost in a first step, and little later; vectors, with their moments in fp32, lose nothing."""
    model, exact = toy(), toy()
    ours, reference = make_optimizer(model, config_of("adamw-8bit")), make_optimizer(exact, config_of("adamw"))
    make_steps(model, ours, range(1, 2))
    make_steps(exact, reference, range(1, 2))
    assert_near(weights_of(model), weights_of(exact))
    make_steps(model, ours, range(2, 40))
    make_steps(exact, reference, range(2, 40))
    start = weights_of(toy())
    for name, weight in weights_of(exact).items():
        off = (weights_of(model)[name] - weight).norm() / (weight - start[name]).norm()
        assert off < (0.05 if weight.ndim > 1 else 1e-5), (name, float(off))


@given(seed=st.integers(0, 2**16), spread=st.integers(0, 12), columns=st.integers(SHORTEST_ROW, 600))
def test_a_code_is_near_and_a_square_never_becomes_0(seed: int, spread: int, columns: int) -> None:
    """Near: within 1.1 % of the largest of its block; steps are divided by the roots of squares."""
    rng = torch.Generator().manual_seed(seed)
    means = torch.randn(3, columns, generator=rng) * 10.0 ** -torch.randint(0, spread + 1, (3, columns), generator=rng)
    for key, moment in (("exp_avg", means), ("exp_avg_sq", means.square())):
        state = {
            key: torch.zeros(moment.shape, dtype=torch.uint8),
            f"{key}_scale": torch.zeros(3, -(-columns // CODED_BLOCK)),
        }
        write_moment(state, key, moment)
        read = read_moment(state, key)
        for start in range(0, columns, CODED_BLOCK):
            block = (slice(None), slice(start, start + CODED_BLOCK))
            largest = moment[block].abs().amax(dim=1, keepdim=True)
            assert ((read[block] - moment[block]).abs() <= 0.011 * largest).all()
            assert torch.equal(read[block].abs().amax(dim=1, keepdim=True), largest)
        if key == "exp_avg_sq":
            assert torch.equal(read > 0, moment > 0)
        again = dict(state)
        write_moment(again, key, read)
        assert torch.equal(read_moment(again, key), read)


@pytest.mark.parametrize("name", FULL)
def test_rules_reach_every_optimizer(name: str) -> None:
    """A rate of 0 for what a rule names, and everything else as without it."""
    plain = by_us(name)
    ruled = by_us(name, groups=[{"match": "blocks.0.*", "lr_scale": 0.0}])
    first = weights_of(toy())
    for key in plain:
        assert torch.equal(ruled[key], first[key] if key.startswith("blocks.0.") else plain[key]), key


def test_the_first_rule_that_matches_counts() -> None:
    rules = config_of("adamw", groups=[*GROUPS, {"match": "blocks.1.*", "lr_scale": 2.0}]).groups
    groups = parameter_groups(toy(), 0.1, rules)
    found = {name: (group.weight_decay, group.lr_scale) for group in groups for name in group.names}
    assert found["blocks.1.norm.weight"] == (0.01, 0.5)
    assert found["blocks.1.norm.bias"] == (0.0, 2.0)
    assert found["blocks.1.q_proj.weight"] == (0.1, 2.0)
    assert found["blocks.0.q_proj.weight"] == (0.1, 1.0)
    assert sum(len(group.parameters) for group in groups) == len(list(toy().parameters()))
