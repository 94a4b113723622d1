"""Rows packed end to end, in any packs and any micro batches: the loss and the gradients of each row alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.training.batching import BatchSizes
from launchyard.training.build import build_model
from launchyard.training.data.micro_batch import MicroBatch, micro_batches
from launchyard.training.data.reader import Batch
from launchyard.training.distributed import connect, disconnect, read_world
from launchyard.training.objectives.next_token import NextToken
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.parallel import clean_name, local, shard_extent
from launchyard.training.sections.optimizer import OptimizerConfig
from launchyard.training.spec import IGNORE_INDEX
from launchyard.training.step import forward_backward, train_step
from launchyard.training.validation.held_out import validation_means
from tests.support.ranks import run_ranks
from tests.training.test_families import fill
from tests.training.test_step import EXPERTS, LLAMA, recipe_of

CPU = torch.device("cpu")
LENGTHS = (5, 12, 3, 9, 2, 16, 7, 1, 11, 4, 6, 8)
ALONE = tuple((number,) for number in range(12))
PACKS = ((5,), (1, 9), (3, 6), (0, 8), (11, 2, 4), (10, 7), (), ())  # the last step of an epoch has empty ones
T = 16


def documents() -> list[tuple[Tensor, Tensor]]:
    """Inputs and labels of unequal numbers; some have none."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in LENGTHS:
        tokens = torch.randint(0, 97, (length + 1,), generator=generator)
        labels = tokens[1:].clone()
        labels[: length // 2 if length % 2 else length - 1] = IGNORE_INDEX
        found.append((tokens[:-1], labels))
    found[3][1][:] = IGNORE_INDEX
    return found


def packed(packs: Sequence[Sequence[int]], rows: list[tuple[Tensor, Tensor]] | None = None) -> Batch:
    rows = documents() if rows is None else rows
    inputs = torch.zeros(len(packs), T, dtype=torch.int64)
    labels = torch.full((len(packs), T), IGNORE_INDEX)
    for number, pack in enumerate(packs):
        for into, part in ((inputs, 0), (labels, 1)):
            row = torch.cat([rows[document][part] for document in pack] or [inputs.new_zeros(0)])
            into[number, : len(row)] = row
    lengths = tuple(tuple(LENGTHS[document] for document in pack) for pack in packs)
    return Batch(inputs, labels, int((labels != IGNORE_INDEX).sum()), 0, lengths)


def model_of(shape: dict[str, Any], world_size: int = 1) -> nn.Module:
    recipe = recipe_of(shape, load_balancing_loss=0.5 if shape is EXPERTS else 0.0)
    model = build_model(ModelConfig.model_validate(shape), recipe, world_size=world_size, device=CPU, fill=False)
    fill(model)
    return model


def gradients(model: nn.Module, batches: list[MicroBatch], n_valid: int) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss = forward_backward(model, batches, n_parts=n_valid)
    return float(loss), {clean_name(name): local(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def whole(shape: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    """By rows alone, which know nothing of documents, where no experts are to be balanced."""
    alone = packed(ALONE)
    if shape is EXPERTS:
        return gradients(model_of(shape), micro_batches(alone, 1, CPU), alone.n_valid)
    rows = [MicroBatch(row[0][None], row[1][None]) for row in documents()]
    return gradients(model_of(shape), rows, alone.n_valid)


def assert_same(found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        assert float((found[1][name] - grad).abs().max()) < 2e-6 * float(grad.abs().max()), name


@pytest.mark.parametrize("shape", [LLAMA, EXPERTS], ids=["llama", "experts"])
def test_packs_have_the_loss_and_gradients_of_rows_alone(shape: dict[str, Any]) -> None:
    expected = whole(shape)
    model = model_of(shape)
    for packs, sizes in ((ALONE, (1, 4, 12)), (PACKS, (1, 2, 4, 8))):
        batch = packed(packs)
        for size in sizes:
            assert_same(gradients(model, micro_batches(batch, size, CPU), batch.n_valid), expected)


def _compare() -> None:
    world = read_world()
    connect(world, CPU)
    expected = whole(LLAMA)
    batch = packed(PACKS)
    mine = Batch(*(part.chunk(2)[world.rank] for part in (batch.inputs, batch.labels)), 0, 0,
                 batch.documents[world.rank * 4 :][:4])  # fmt: skip
    model = model_of(LLAMA, world_size=2)
    loss, found = gradients(model, micro_batches(mine, 1, CPU), batch.n_valid)
    total = torch.tensor(loss)
    torch.distributed.all_reduce(total)
    places = {clean_name(name): shard_extent(p) for name, p in model.named_parameters()}
    parts = {
        name: grad[tuple(slice(at, at + n) for at, n in zip(*places[name], strict=True))]
        for name, grad in expected[1].items()
    }
    assert_same((float(total), found), (expected[0], parts))
    disconnect()


@pytest.mark.slow
def test_two_ranks_with_packs_have_the_gradients_of_one() -> None:
    run_ranks(2, _compare)


def test_a_neighbour_leaves_the_loss_of_a_document_as_it_is() -> None:
    rows = documents()
    model = model_of(LLAMA)
    n_valid = packed(((1,),)).n_valid
    rows[9][1][:] = IGNORE_INDEX  # so that the loss is that of row 1
    losses = []
    for seed in (1, 2):
        rows[9][0][:] = torch.randint(0, 97, (4,), generator=torch.Generator().manual_seed(seed))
        losses.append(gradients(model, micro_batches(packed(((1, 9),), rows), 1, CPU), n_valid))
    assert losses[0][0] == losses[1][0] > 0


def test_a_step_without_labels_is_an_error() -> None:
    batch = packed(((3,),))
    assert batch.n_valid == 0
    with pytest.raises(ValueError, match="no token of this step has a label"):
        forward_backward(model_of(LLAMA), micro_batches(batch, 1, CPU), n_parts=batch.n_valid)


class _Packs:
    """A reader of PACKS in order, which starts over past the last."""

    n_samples = 7
    global_batch_size = 4
    cache = None

    def batch(self, step: int, first_slot: int = 0, n: int | None = None) -> Batch:
        start = step * 4 + first_slot
        return packed([PACKS[slot % 7] for slot in range(start, start + (n or 4))])


def test_validation_sees_each_row_once_in_any_cut() -> None:
    model = model_of(LLAMA)
    expected, _ = whole(LLAMA)
    for micro in (1, 4):
        sizes = BatchSizes(4, micro, 4 // micro, 1)
        reader: Any = _Packs()
        cut = {"sizes": sizes, "data_rank": 0, "device": CPU, "max_batches": None}
        assert validation_means(model, reader, NextToken(), **cut) == pytest.approx([expected], rel=1e-6)


DROPPED = Adapter(kind="lora", r=4, dropout=0.3)


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}], ids=["of an adapter", "of the model"])
def test_dropout_is_of_the_slot_and_the_step(options: dict[str, float]) -> None:
    """In any cut of a step, and other in the next; a validation has none."""
    batch = packed(PACKS)
    adapter = None if options else DROPPED

    def after_a_step(size: int, number: int = 1) -> dict[str, Tensor]:
        model = build_model(ModelConfig.model_validate(LLAMA), recipe_of(LLAMA, **options), world_size=1, device=CPU,
                            adapter=adapter)  # fmt: skip
        fill(model)
        optimizer = make_optimizer(model, OptimizerConfig(eps=1e-3))
        train_step(model, optimizer, micro_batches(batch, size, CPU), n_parts=batch.n_valid, number=number, lr=0.1,
                   max_grad_norm=None)  # fmt: skip
        dropped = (
            any(getattr(module, "noise", None) for module in model.modules()) or model.blocks[0].attention.scores.noise
        )
        assert dropped and torch.equal(model(batch.inputs), model(batch.inputs))
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    whole = after_a_step(8)
    for size in (1, 2):
        for name, part in after_a_step(size).items():
            torch.testing.assert_close(part, whole[name], rtol=0, atol=1e-5, msg=name)
    assert any(not torch.equal(part, whole[name]) for name, part in after_a_step(8, number=2).items())
