"""Losses of pairs: the published formula on rows alone, whatever the packs, the micro batches and the ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from launchyard.model.adapt.lora import without_updates
from launchyard.model.adapter import Adapter
from launchyard.training.data.instruct.conversation import Row
from launchyard.training.data.micro_batch import micro_batches
from launchyard.training.data.prepare.rows import write_rows
from launchyard.training.data.reader import Batch
from launchyard.training.data.row_reader import RowReader
from launchyard.training.data.row_store import RowStore
from launchyard.training.distributed import connect, disconnect, read_world
from launchyard.training.loss import label_log_probs
from launchyard.training.objectives.preference import PreferenceLoss
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.parallel import clean_name, local, shard_extent
from launchyard.training.step import forward_backward, train_step
from tests.support.ranks import run_ranks
from tests.support.tiny_models import llama
from tests.training.checkpoint.test_adapters import CPU, built, recipe_of, stir

CONFIG = llama(tie_embeddings=True)
N_PAIRS = 9
T = 32
LOSSES = {
    "dpo": PreferenceLoss(beta=0.3),
    "dpo, smoothed": PreferenceLoss(beta=0.3, label_smoothing=0.2),
    "simpo": PreferenceLoss("simpo", beta=2.0, target_margin=0.7),
}


def pair(number: int) -> list[Row]:
    """A prompt and two answers of other lengths."""
    generator = np.random.default_rng(number)
    prompt = generator.integers(0, 97, 2 + number % 3)
    sides = [np.append(prompt, generator.integers(0, 97, 1 + (number * k) % 7)) for k in (3, 5)]
    return [Row(ids, np.arange(len(ids)) >= len(prompt), "here") for ids in sides]


def reader(folder: Path, *, size: int = 4, seed: int = 0) -> RowReader:
    if not folder.exists():
        write_rows(map(pair, range(N_PAIRS)), str(folder), chunk_tokens=64)
    store = RowStore(f"{folder}/train")
    return RowReader(store, seq_len=T, global_batch_size=size, seed=seed, epochs=1, together=2)


def model_of(kind: str = "lora", world_size: int = 1) -> nn.Module:
    adapter = Adapter(kind=kind, r=4)  # type: ignore[arg-type]
    model = built(CONFIG, adapter, world_size)
    stir(model, CONFIG, adapter)
    return model


def plain_loss(model: nn.Module, loss: PreferenceLoss) -> Tensor:
    """The formula as published, a row at a time, with whole logits."""
    total = torch.zeros(())
    for rows in map(pair, range(N_PAIRS)):
        values = []
        for row in rows:
            ids = torch.tensor(row.ids)[None]
            wanted = torch.tensor(row.trained[1:])

            def log_probs(ids: Tensor = ids, wanted: Tensor = wanted) -> Tensor:
                each = model(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[0, :, 0]
                return each[wanted]

            if loss.kind == "simpo":
                values.append(log_probs().mean())
                continue
            with torch.no_grad(), without_updates(model):
                reference = log_probs().sum()
            values.append(log_probs().sum() - reference)
        logit = loss.beta * (values[0] - values[1]) - loss.target_margin
        eps = loss.label_smoothing
        total = total - (1 - eps) * logsigmoid(logit) - eps * logsigmoid(-logit)
    return total / N_PAIRS


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {clean_name(name): local(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}


def whole_batch(folder: Path, slots: int = 4) -> Batch:
    """All pairs in one batch, with an empty slot at its end."""
    found = reader(folder, size=slots)
    assert found.n_samples < slots
    return found.batch(0)


@pytest.mark.parametrize("size", [1, 3, 12])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_packs_of_pairs_have_the_loss_and_gradients_of_the_formula(
    tmp_path: Path, loss: PreferenceLoss, size: int
) -> None:
    model = model_of()
    expected = plain_loss(model, loss)
    expected.backward()
    of_formula = gradients(model)
    model.zero_grad()
    batches = micro_batches(whole_batch(tmp_path / "rows", 12), size, CPU)
    found = forward_backward(model, batches, n_parts=N_PAIRS, objective=loss)
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-5, atol=1e-6)
    assert of_formula.keys() == gradients(model).keys()
    for name, grad in gradients(model).items():
        torch.testing.assert_close(
            grad, of_formula[name], rtol=1e-4, atol=5e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kind", ["lora", "dora", "qlora", "llama-adapter"])
def test_the_reference_is_the_base(tmp_path: Path, kind: str) -> None:
    model = built(CONFIG, adapter := Adapter(kind=kind, r=4))  # type: ignore[arg-type]
    tokens = torch.arange(12)[None]
    start = model(tokens).detach()
    (batch,) = micro_batches(whole_batch(tmp_path / "rows", 12), 12, CPU)
    assert not PreferenceLoss().rewards(model, batch).any()  # before the first step, to the last bit
    stir(model, CONFIG, adapter)
    assert not torch.allclose(model(tokens), start, atol=1e-3)
    with without_updates(model):
        torch.testing.assert_close(model(tokens), start, rtol=0, atol=1e-5)
    assert PreferenceLoss().rewards(model, batch).all()


@pytest.mark.parametrize("adapter", [None, Adapter(kind="lora", trained=("norm.weight",))])
def test_a_model_that_does_not_keep_its_base_is_refused(tmp_path: Path, adapter: Adapter | None) -> None:
    (batch,) = micro_batches(whole_batch(tmp_path / "rows", 12), 12, CPU)
    with pytest.raises(ValueError, match="the model as it began is not kept"):
        PreferenceLoss()(built(CONFIG, adapter), batch, 1.0)
    assert PreferenceLoss("simpo")(built(CONFIG, adapter), batch, 1.0)[0] > 0  # which needs none


def test_a_pair_is_never_split_and_each_is_in_one_pack(tmp_path: Path) -> None:
    found = reader(tmp_path / "rows", seed=3)
    packs = [found.rows(number).tolist() for number in range(found.n_samples)]
    for pack in packs:
        assert [row + 1 for row in pack[::2]] == pack[1::2]
        assert all(row % 2 == 0 for row in pack[::2])
    assert sorted(row for pack in packs for row in pack) == list(range(2 * N_PAIRS))
    batch = found.batch(0)
    assert batch.documents is not None
    assert all(sum(lengths) <= T for lengths in batch.documents)
    with pytest.raises(ValueError, match="no groups of 4"):
        RowReader(found.store, seq_len=T, global_batch_size=1, together=4)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_log_probabilities_and_their_gradients_are_those_of_whole_logits(softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in ((600, 8), (97, 8), (97,))]
    labels = torch.randint(0, 97, (600,), generator=generator)
    weights = torch.randn(600, generator=generator)
    found = []
    for plain in (False, True):
        hidden, weight, bias = (part.clone().requires_grad_() for part in made)
        if plain:
            logits = hidden @ weight.t() + bias
            logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            each = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
        else:
            each = label_log_probs(hidden, weight, labels, bias=bias, softcap=softcap)
        (each * weights).sum().backward()
        found.append([each.detach(), hidden.grad, weight.grad, bias.grad])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def stepped(model: nn.Module, batch: Batch, first_slot: int = 0) -> float:
    optimizer = make_optimizer(model, recipe_of(CONFIG).optimizer)
    parts = micro_batches(batch, 2, CPU, first_slot=first_slot)
    dpo = LOSSES["dpo"]
    for number in (1, 2):
        means, _ = train_step(
            model, optimizer, parts, n_parts=N_PAIRS, number=number, lr=0.01, max_grad_norm=1.0, objective=dpo
        )
    return float(means[0])


def trained(model: nn.Module) -> dict[str, tuple[int, Tensor]]:
    return {
        clean_name(name): (shard_extent(p)[0][0] if p.dim() else 0, local(p).detach().clone())
        for name, p in model.named_parameters()
        if p.requires_grad
    }


@pytest.mark.slow
def test_steps_of_dpo_are_the_same_on_two_ranks(tmp_path: Path) -> None:
    whole_batch(tmp_path / "rows", 12)
    run_ranks(2, _on_two_ranks, tmp_path)
    model = model_of()
    last = stepped(model, whole_batch(tmp_path / "rows", 12))
    for rank in range(2):
        loss, parts = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert loss == pytest.approx(last, rel=1e-5)
        for name, (_, tensor) in trained(model).items():
            start, mine = parts[name]
            torch.testing.assert_close(mine, tensor[start : start + len(mine)], rtol=1e-3, atol=1e-5, msg=name)


def _on_two_ranks(folder: Path) -> None:
    world = read_world()
    connect(world, CPU)
    model = model_of(world_size=2)
    half = reader(folder / "rows", size=12).batch(0, 6 * world.rank, 6)
    loss = stepped(model, half, 6 * world.rank)
    torch.save((loss, trained(model)), folder / f"{world.rank}.pt")
    disconnect()
