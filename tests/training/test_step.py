"""One big batch, accumulation, two or four workers, sharded, replicated or recomputed: one and the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from launchyard.model.config import ModelConfig
from launchyard.training.batching import shares_of
from launchyard.training.build import build_model
from launchyard.training.checkpoint.state import shards
from launchyard.training.compose import choose_objective
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.distributed import connect, disconnect, read_world
from launchyard.training.optim.averaged import with_average
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.parallel import mesh_shape
from launchyard.training.recipe import Recipe
from launchyard.training.sections.optimizer import OptimizerConfig
from launchyard.training.sections.train import TrainConfig
from launchyard.training.spec import IGNORE_INDEX
from launchyard.training.step import UpdateRules, forward_backward, reduce_and_clip, train_step
from tests.support.ranks import run_ranks
from tests.support.small_runs import MODEL

STEPS, GLOBAL, SEQ_LEN = 3, 8, 16
LLAMA = {
    "family": "llama", "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "vocab_size": 97,
    "max_seq_len": 64, "tie_embeddings": True,
}  # fmt: skip

GEMMA = {
    **LLAMA, "qk_norm": "head", "norm_place": "sandwich", "norm_weight": "plus_one", "embed_scale": 2.0,
    "attention_bias": True, "mlp_bias": True,
}  # fmt: skip
WINDOWS = {**GEMMA, "window": 5, "layers": ["window", "full"], "attention_softcap": 20.0}
ALIBI = {**MODEL, "positions": "alibi"}
EXPERTS = {
    **LLAMA, "dim": 32, "moe": {
        "n_experts": 4, "top_k": 2, "ffn_dim": 24, "score": "sigmoid", "normalize": True, "choice_bias": True,
        "shared_ffn_dim": 16, "wide_router": True,
    },
}  # fmt: skip


def global_batch(step: int) -> tuple[Tensor, Tensor]:
    """Sequences of unequal length, one with nothing to learn at all, some tokens masked."""
    rng = torch.Generator().manual_seed(step)
    inputs = torch.randint(0, 97, (GLOBAL, SEQ_LEN), generator=rng)
    labels = torch.randint(0, 97, (GLOBAL, SEQ_LEN), generator=rng)
    labels[torch.rand(GLOBAL, SEQ_LEN, generator=rng) < 0.3] = IGNORE_INDEX
    for row in range(GLOBAL):
        labels[row, 3 + 2 * row :] = IGNORE_INDEX
    labels[1] = IGNORE_INDEX
    return inputs, labels


def recipe_of(model: dict[str, Any], **parallel: Any) -> Recipe:
    train = {"max_steps": STEPS, "global_batch_size": GLOBAL, "device": "cpu"}
    train |= {key: parallel.pop(key) for key in list(parallel) if key in TrainConfig.model_fields}
    return Recipe.model_validate(
        {"name": "x", "model": model, "data": {"source": "x"}, "train": train, "parallel": parallel}
    )


def train(recipe: Recipe, micro_batch_size: int) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """A few steps on this rank's share: (loss, gradient norm) of each, and this rank's parts in the end."""
    world, config = read_world(), ModelConfig.model_validate(recipe.model.model_dump(exclude_none=True))
    model = build_model(config, recipe, world_size=world.world_size, device=torch.device("cpu"))
    adam = OptimizerConfig(lr=1e-2, eps=1e-4)  # else Adam turns rounding of tiny gradients into steps
    optimizer = with_average(make_optimizer(model, adam), model, recipe.train.ema_decay)
    optimizer.begin(resumed=False)
    alike = shares_of(recipe.parallel)
    share, numbers = GLOBAL * alike // world.world_size, []
    first = world.rank // alike * share
    for step in range(STEPS):
        inputs, labels = global_batch(step)
        mine = slice(first, first + share)
        pairs = zip(inputs[mine].split(micro_batch_size), labels[mine].split(micro_batch_size), strict=True)
        slots = range(mine.start, mine.stop, micro_batch_size)
        loss, norm = train_step(
            model,
            optimizer,
            [MicroBatch(*pair, first_slot=slot) for pair, slot in zip(pairs, slots, strict=True)],
            n_parts=int((labels != IGNORE_INDEX).sum()),
            number=step + 1,
            lr=1e-2,
            max_grad_norm=0.5,
            rules=UpdateRules(
                copies=mesh_shape(recipe.parallel, world.world_size)[0], max_grad_value=recipe.train.max_grad_value
            ),
            objective=choose_objective(recipe),
        )
        numbers.append((float(loss), float(norm)))
    return numbers, shards(model, optimizer)


def reference(model: dict[str, Any], **options: Any) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
    numbers, parts = train(recipe_of(model, **options), GLOBAL)
    return numbers, {key: shard.tensor for key, shard in parts.items()}


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_accumulation_is_one_big_batch(micro_batch_size: int) -> None:
    numbers, whole = reference(MODEL)
    accumulated, parts = train(recipe_of(MODEL), micro_batch_size)
    assert accumulated == [(pytest.approx(loss, rel=1e-6), pytest.approx(norm, rel=1e-5)) for loss, norm in numbers]
    for key, shard in parts.items():
        torch.testing.assert_close(shard.tensor, whole[key], rtol=1e-3, atol=1e-5)


def test_a_balance_of_experts_is_one_of_each_sequence() -> None:
    """So that it is the same however the sequences are cut into micro batches; and it is trained for."""
    balanced = recipe_of(EXPERTS, load_balancing_loss=0.5)
    (numbers, whole), (accumulated, parts) = train(balanced, GLOBAL), train(balanced, 2)
    assert accumulated == [(pytest.approx(loss, rel=1e-6), pytest.approx(norm, rel=1e-5)) for loss, norm in numbers]
    assert numbers[0][0] == reference(EXPERTS)[0][0][0] and numbers[0][1] != reference(EXPERTS)[0][0][1]
    for key, shard in parts.items():
        torch.testing.assert_close(shard.tensor, whole[key].tensor, rtol=1e-3, atol=1e-5)


# Each changes what is learnt, and none depends on how a step is cut.
REGULAR: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.2},
    "smoothing and z": {"label_smoothing": 0.1, "z_loss": 0.01},
    "clipping by value": {"max_grad_value": 0.02},
    "average": {"ema_decay": 0.5},
}


@pytest.mark.parametrize("options", REGULAR.values(), ids=REGULAR)
def test_regularisers_do_not_depend_on_the_cut(options: dict[str, Any]) -> None:
    numbers, whole = reference(LLAMA, **options)
    accumulated, parts = train(recipe_of(LLAMA, **options), 2)
    assert accumulated == [(pytest.approx(loss, rel=1e-6), pytest.approx(norm, rel=1e-5)) for loss, norm in numbers]
    for key, shard in parts.items():
        torch.testing.assert_close(shard.tensor, whole[key], rtol=1e-3, atol=1e-5)
    plain = reference(LLAMA)[1]
    assert plain.keys() != whole.keys() or any(not torch.equal(plain[key], whole[key]) for key in plain)


def test_values_are_clipped_as_torch_does_it() -> None:
    torch.manual_seed(0)
    mine, theirs = torch.nn.Linear(5, 7), torch.nn.Linear(5, 7)
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 3.0)
    torch.nn.utils.clip_grad_value_(theirs.parameters(), 0.25)
    _, found = reduce_and_clip(mine, torch.zeros(1), max_grad_norm=3.0, max_grad_value=0.25)
    assert float(found) == pytest.approx(float(norm))
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=0)
        assert float(one.grad.abs().max()) == 0.25


@pytest.mark.parametrize(("kind", "every"), [("full", 1), ("full", 2), ("op", 1), ("op", 2)])
@pytest.mark.parametrize("model", [LLAMA, MODEL, EXPERTS], ids=["llama", "neox", "experts"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputed_activations_give_the_same_bits(
    model: dict[str, Any], kind: str, every: int, dropout: float
) -> None:
    numbers, whole = reference(model, dropout=dropout)
    recomputed = recipe_of(model, dropout=dropout, activation_checkpointing=kind, activation_checkpointing_every=every)
    again, parts = train(recomputed, GLOBAL)
    assert again == numbers
    assert parts.keys() == whole.keys()  # no trace of the wrapper in the names
    assert all(torch.equal(shard.tensor, whole[key]) for key, shard in parts.items())


def _compare(folder: str, model: dict[str, Any], options: dict[str, Any], micro: int, loose: bool) -> None:
    numbers, whole = torch.load(f"{folder}/reference.pt")
    connect(read_world(), torch.device("cpu"))
    mine, parts = train(recipe_of(model, **options), micro)
    rel = 2e-2 if loose else 1e-5
    for (loss, norm), (want_loss, want_norm) in zip(mine, numbers, strict=True):
        assert loss == pytest.approx(want_loss, rel=rel)
        assert norm == pytest.approx(want_norm, rel=rel * 3)
    for key, shard in parts.items() if not loose else ():
        box = tuple(slice(at, at + n) for at, n in zip(shard.offsets, shard.tensor.shape, strict=True))
        torch.testing.assert_close(shard.tensor, whole[key][box], rtol=1e-3, atol=2e-5, msg=lambda m, key=key: key + m)
    disconnect()


CASES = {
    "two workers": (2, MODEL, {}, 4, False),
    "two workers, accumulated": (2, LLAMA, {}, 1, False),
    "two replicas": (2, MODEL, {"dp_replicate": 2, "dp_shard": 1}, 2, False),
    "bf16": (2, LLAMA, {"precision": "bf16", "activation_checkpointing": "full"}, 2, True),
    "experts": (2, EXPERTS, {}, 2, False),
    "two workers, level 2": (2, LLAMA, {"shard_level": 2}, 2, False),
    "two workers, level 0": (2, LLAMA, {"shard_level": 0, "activation_checkpointing": "op"}, 2, False),
    "on the CPU": (2, LLAMA, {"cpu_offload": True, "activation_checkpointing_every": 2}, 2, False),
    "matrices shared by two": (2, LLAMA, {"tp": 2}, 4, False),
    "matrices shared by two of four": (4, GEMMA, {"tp": 2, "activation_checkpointing": "full"}, 2, False),
    "sequences shared by two": (2, LLAMA, {"cp": 2, "activation_checkpointing": "op"}, 4, False),
    "sequences shared by two of four": (4, WINDOWS, {"cp": 2}, 2, False),
    "sequences and matrices shared": (4, ALIBI, {"cp": 2, "tp": 2}, 8, False),
    "all three axes": (4, MODEL, {"tp": 2, "dp_replicate": 2}, 2, False),
    "regularised": (2, LLAMA, {key: value for each in REGULAR.values() for key, value in each.items()}, 2, False),
    "three ways to cut": (4, LLAMA, {"dp_replicate": 2, "activation_checkpointing": "full"}, 2, False),
}
# These hold more than the others, less, or something else.
SLOW = dict.fromkeys(
    (
        "three ways to cut",
        "two workers",
        "bf16",
        "experts",
        "all three axes",
        "matrices shared by two",
        "sequences shared by two",
        "sequences and matrices shared",
        "two workers, level 2",
        "on the CPU",
    ),
    pytest.mark.slow,
)


@pytest.mark.parametrize("case", [pytest.param(case, marks=SLOW.get(case, ())) for case in CASES])
def test_workers_make_one_step(tmp_path: Path, case: str) -> None:
    world_size, model, options, micro, loose = CASES[case]
    regular = {key: value for key, value in options.items() if key in TrainConfig.model_fields and key != "precision"}
    torch.save(reference(model, **regular), tmp_path / "reference.pt")
    run_ranks(world_size, _compare, str(tmp_path), model, options, micro, loose)


def test_a_bias_of_the_choice_of_experts_is_not_rounded() -> None:
    connect(read_world(), torch.device("cpu"))
    try:
        recipe = recipe_of(EXPERTS, precision="bf16")
        model = build_model(ModelConfig.model_validate(EXPERTS), recipe, world_size=1, device=torch.device("cpu"))
        moe, seen = model.blocks[0].mlp, []
        moe.register_forward_pre_hook(lambda *_: seen.append((moe.router.weight.dtype, moe.choice_bias.dtype)))
        model(global_batch(0)[0][:1])
        assert seen == [(torch.bfloat16, torch.float32)]
    finally:
        disconnect()


def test_an_update_that_is_not_accepted_leaves_no_trace() -> None:
    """In weights, moments and averages; and the next one is made of its own gradient alone."""

    def after(*accepted: bool) -> dict[str, Tensor]:
        model = build_model(
            ModelConfig.model_validate(LLAMA), recipe_of(LLAMA), world_size=1, device=torch.device("cpu")
        )
        optimizer = with_average(make_optimizer(model, OptimizerConfig()), model, 0.5)
        optimizer.begin(resumed=False)
        for number, wanted in enumerate(accepted, start=1):
            inputs, labels = global_batch(number)
            rules = UpdateRules(accepts=lambda means, norm, wanted=wanted: wanted and bool(means.isfinite()))
            micro = MicroBatch(inputs, labels)
            train_step(model, optimizer, [micro], n_parts=9, number=number, lr=0.01, max_grad_norm=1.0, rules=rules)
        return {key: shard.tensor for key, shard in shards(model, optimizer).items()}

    for one, other in (((False, False), ()), ((True, False), (True,))):
        found, wanted = after(*one), after(*other)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert any(not torch.equal(tensor, after()[key]) for key, tensor in after(True).items())


class _Reductions(TorchDispatchMode):
    """Counts the reductions of gradients that c10d is asked for."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "reduce_scatter" in str(function)
        return function(*args, **(kwargs or {}))


def _count_reductions() -> None:
    connect(world := read_world(), torch.device("cpu"))
    config = ModelConfig.model_validate(MODEL)
    model = build_model(config, recipe_of(MODEL), world_size=world.world_size, device=torch.device("cpu"))
    inputs, labels = global_batch(0)
    share = GLOBAL // world.world_size
    for micro in (1, 4, 1):  # each step finds the switch as the one before has left it
        pairs = [
            MicroBatch(*pair) for pair in zip(inputs[:share].split(micro), labels[:share].split(micro), strict=True)
        ]
        with _Reductions() as reductions:
            forward_backward(model, pairs, n_parts=1)
        assert reductions.count == config.n_layers + 1, "one for each block, and one for what is left"
    disconnect()


def test_gradients_are_reduced_once_a_step() -> None:
    """However many micro batches there are. Reducing after each would give the same numbers, slowly."""
    run_ranks(2, _count_reductions)
