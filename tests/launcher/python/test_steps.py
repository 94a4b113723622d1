"""A recipe's parts in the caller's hands: their steps are those of a run, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from launchyard import build, step, train
from launchyard.errors import RecipeErrors
from launchyard.launcher.python.handle import Run

Recipe = dict[str, Any]
pytestmark = pytest.mark.filterwarnings("ignore:data trouble.*has no digests.json")


@pytest.mark.parametrize(
    "keys",
    [
        {"train.micro_batch_size": 4, "train.dropout": 0.1},
        pytest.param({"train.precision": "bf16-mixed"}, marks=pytest.mark.slow),
        {"train.precision": "fp16-mixed", "train.batch_size_ramp": [[0, 4], [2, 12]]},
        {"stability.on_spike": "skip", "optimizer.name": "muon"},
    ],
    ids=lambda keys: " ".join(map(str, keys.values())),
)
def test_steps_by_hand_are_those_of_a_run(recipe: Recipe, tmp_path: Path, keys: dict[str, object]) -> None:
    parts = build(recipe, overrides=keys)
    made = [step(parts) for _ in range(parts.max_steps)]
    done = train(recipe, overrides=keys, run_url=tmp_path / "run")
    rows = done.run.metrics()
    assert [numbers.loss for numbers in made] == done.losses
    skipped = [numbers.updated for numbers in made] != [True] * len(made)
    assert skipped or [(n.step, n.grad_norm, n.lr) for n in made] == [
        (r["step"], r["grad_norm"], r["lr"]) for r in rows
    ]
    assert done.outcome == "completed"


OWN = """
import torch
import torch.nn.functional as F
FIGURES = ["accuracy"]

def loss(model, tokens, labels):
    logits = model(tokens)
    right = (logits.argmax(-1) == labels)[labels != -100].sum()
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") * 2, {"accuracy": right}

def batches(sample_numbers, seq_len, vocab_size):
    return [[(number + place) % vocab_size for place in range(seq_len + 1)] for number in sample_numbers]

def optimizer(named_parameters, lr):
    return torch.optim.SGD([p for _, p in named_parameters], lr=lr, momentum=0.9)
"""


def test_they_are_those_of_the_users_own_code(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    sets = {"again": recipe["data"]["validation"]}
    keys: dict[str, object] = {"code": str(tmp_path / "mine.py"), "data.source": None, "validation.sets": sets}
    parts = build(recipe, overrides=keys)
    made = [step(parts) for _ in range(parts.max_steps)]
    done = train(recipe, overrides=keys, run_url=tmp_path / "run")
    rows = done.run.metrics()
    assert [numbers.loss for numbers in made] == done.losses
    assert [numbers.grad_norm for numbers in made] == [row["grad_norm"] for row in rows]
    assert [numbers.figures for numbers in made] == [row["figures"] for row in rows]
    held_out = done.run.metrics("validation")
    assert [(row["step"], row.get("set")) for row in held_out] == [(4, None), (4, "again"), (8, None), (8, "again")]
    for row in held_out:
        assert row["figures"].keys() == {"accuracy"} and "perplexity" not in row, "of a loss of one's own"
    share: dict[str, object] = {"validation.every_steps": None, "validation.every_epochs": 0.5}
    with pytest.raises(RecipeErrors, match="every_epochs: batches of your own code has no epochs"):
        build(recipe, overrides=keys | share)


def test_a_step_on_a_batch_of_ones_own(recipe: Recipe) -> None:
    parts = build(recipe)
    tokens = torch.arange(12).repeat(4, 2)
    labels = tokens.roll(-1, 1)
    labels[:, -5:] = -100
    losses = [step(parts, (tokens, labels)).loss for _ in range(6)]
    assert losses == sorted(losses, reverse=True), "it learns what it sees again and again"
    assert parts.steps == 6
    with pytest.raises(ValueError, match=r"batch: inputs \(4, 24\) and labels \(4, 23\)"):
        step(parts, (tokens, labels[:, 1:]))
    with pytest.raises(ValueError, match="no token has a label"):
        step(parts, (tokens, torch.full_like(tokens, -100)))


def test_batches_are_those_of_their_steps(recipe: Recipe) -> None:
    parts = build(recipe)
    first = parts.batch()
    assert first.inputs.shape == (12, 16)
    assert torch.equal(first.labels[:, :-1], first.inputs[:, 1:])
    second = parts.batch(2)
    step(parts)
    assert torch.equal(parts.batch().inputs, second.inputs)
    assert parts.model(first.inputs[:2]).shape[:2] == (2, 16)
    with pytest.raises(ValueError, match="counted from 1"):
        parts.batch(0)


def test_the_process_is_as_before(recipe: Recipe, tmp_path: Path) -> None:
    """Random numbers, threads, and no run where none was asked for."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    step(build(recipe))
    train(recipe, overrides={"train.max_steps": 1}, run_url="run")
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert Run.named("latest").url == str(tmp_path / "run")


def test_mistakes_are_told_as_of_a_call(recipe: Recipe) -> None:
    with pytest.raises(RecipeErrors, match=r"max_stepz=3 in overrides: train.max_stepz: unknown key; did you"):
        build(recipe, overrides={"train.max_stepz": 3})
    with pytest.raises(RecipeErrors, match=r"the recipe: data.seed: a object; use text"):
        build({**recipe, "data": {"seed": object()}})
