"""The learning rate is a pure function of the step; vectors do not decay; the optimizer is torch's."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launchyard.training.optim.base import parameter_groups
from launchyard.training.optim.optimizers import OPTIMIZERS, make_optimizer
from launchyard.training.optim.schedule import lr_at
from launchyard.training.sections.optimizer import OptimizerConfig, ScheduleConfig

ADAMW = OptimizerConfig(lr=1.0)


def test_cosine_at_its_marks() -> None:
    schedule = ScheduleConfig(warmup_steps=10, min_lr=0.1)
    lr = [lr_at(step, max_steps=110, optimizer=ADAMW, schedule=schedule) for step in range(110)]
    assert lr[0] == pytest.approx(0.1)
    assert lr[9] == 1.0
    assert lr[59] == pytest.approx(0.55)
    assert lr[109] == pytest.approx(0.1)
    assert max(lr) == 1.0


@given(
    max_steps=st.integers(1, 500),
    warmup=st.one_of(st.integers(0, 600), st.floats(0, 0.99)),
    name=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_never_beyond_its_bounds(max_steps: int, warmup: float, name: str) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=warmup, min_lr=0.0)
    for step in range(max_steps):
        assert 0 <= lr_at(step, max_steps=max_steps, optimizer=ADAMW, schedule=schedule) <= 1


def test_a_recipe_can_name_every_optimizer_and_no_other() -> None:
    assert set(OPTIMIZERS) == set(get_args(OptimizerConfig.model_fields["name"].annotation))


def test_only_matrices_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    decayed, spared = parameter_groups(model, 0.1)
    assert [p.ndim for p in decayed.parameters] == [2] and decayed.weight_decay == 0.1
    assert [p.ndim for p in spared.parameters] == [1, 1, 1] and spared.weight_decay == 0.0


def test_steps_are_those_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    mine = make_optimizer(ours, OptimizerConfig(lr=0.01, weight_decay=0.1, betas=(0.8, 0.9)))
    reference = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.8, 0.9),
        fused=True,
    )
    for step in range(5):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        mine.zero_grad()
        ours(x).square().sum().backward()
        mine.step(step + 1, 0.01)
        reference.zero_grad()
        theirs(x).square().sum().backward()
        reference.step()
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
