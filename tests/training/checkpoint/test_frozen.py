"""Parameters that do not train: no gradient, no moments, not saved; and a resumed run is still the run that was not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import frozen_names, parameters
from launchyard.model.memory import checkpoint_bytes, training_memory
from launchyard.model.network.init import initial_rows
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import open_weights
from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.storage.shards import open_shards, read_manifest, verify
from launchyard.training.build import build_model
from launchyard.training.checkpoint.state import shards
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.recipe import Recipe
from launchyard.training.spec import DataSpec
from launchyard.training.step import train_step
from tests.support.small_runs import MODEL, RECIPE, final_weights, history, make_run, run_workers, start_workers
from tests.support.small_runs import write_data as small_data
from tests.support.tiny_models import random_model, weights_of

CONFIG = ModelConfig.model_validate(MODEL)
ADAPTER = Adapter(frozen=("embed.weight", "blocks.0.*", "*.bias"))
FROZEN = frozen_names(CONFIG, ADAPTER)
TRAINED = [name for name in parameters(CONFIG) if name not in FROZEN]
SAVED = {f"model.{name}" for name in TRAINED} | {
    f"optimizer.{name}.{moment}" for name in TRAINED for moment in ("exp_avg", "exp_avg_sq")
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return small_data(tmp_path_factory.mktemp("data"))


def frozen_run(folder: Path, data: DataSpec) -> RunDir:
    run = make_run(folder, data, {"schedule.name": "constant"})
    freeze(run, ADAPTER)
    return run


def freeze(run: RunDir, adapter: Adapter) -> None:
    run.write_json("plan.json", {**run.read_json("plan.json"), "adapter": adapter.model_dump(mode="json")})


def newest(run: RunDir) -> str:
    return run.path(run.checkpoint_dir(committed_steps(run)[-1]))


def test_a_step_costs_what_is_foreseen() -> None:
    recipe = Recipe.model_validate(RECIPE)
    model = build_model(CONFIG, recipe, world_size=1, device=torch.device("cpu"), adapter=ADAPTER)
    optimizer = make_optimizer(model, recipe.optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokens = torch.randint(0, 97, (2, 16), generator=torch.Generator().manual_seed(0))
    grads: list[int] = []
    zero_grad = optimizer.zero_grad
    optimizer.zero_grad = lambda: (  # type: ignore[method-assign]  # the step forgets them
        grads.extend(p.grad.nbytes for p in model.parameters() if p.grad is not None), zero_grad(),
    )  # fmt: skip
    train_step(model, optimizer, [MicroBatch(tokens, tokens)], n_parts=32, number=1, lr=0.01, max_grad_norm=1.0)
    foreseen = training_memory(
        CONFIG, micro_batch_size=2, seq_len=16, shards=1, precision="fp32",
        device="cpu", adapter=ADAPTER,
    )  # fmt: skip
    state = [optimizer.state(p) for p in model.parameters()]
    assert sum(grads) == foreseen["gradients"]
    assert sum(entry.tensor.nbytes for entries in state for entry in entries.values()) == foreseen["optimizer"]
    assert sum(p.nbytes for p in model.parameters()) == foreseen["weights"]
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) == (name in FROZEN), name
        assert bool(optimizer.state(parameter)) == (name not in FROZEN), name
    assert shards(model, optimizer).keys() == SAVED


@pytest.mark.parametrize("nproc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_run_that_was_not(tmp_path: Path, data: DataSpec, nproc: int) -> None:
    expected, run = frozen_run(tmp_path / "undisturbed", data), frozen_run(tmp_path / "resumed", data)
    run_workers(expected, nproc)
    run_workers(run, nproc, {"train.max_steps": 9})
    check_saved(run)
    run_workers(run, nproc)
    assert next(event["step"] for event in run.events(1) if event["event"] == "started") == 9
    assert history(run) == history(expected)
    check_saved(run)
    mine, theirs = final_weights(run), final_weights(expected)
    assert all(torch.equal(mine[key], theirs[key]) for key in SAVED)


def check_saved(run: RunDir) -> None:
    """Exactly what trains is in the newest checkpoint; the rest is known all the same."""
    folder = newest(run)
    manifest = read_manifest(folder)
    opened = open_shards(folder, manifest)
    pieces = [piece for name in manifest.files for _, piece in opened.pieces_in(name)]
    assert manifest.tensors.keys() == SAVED
    assert manifest.frozen == FROZEN
    assert sum(piece.length for piece in pieces) == checkpoint_bytes(CONFIG, ADAPTER)
    assert list(verify(folder, manifest)) == []
    _, weights = open_weights(folder)
    for name, parameter in parameters(CONFIG).items():
        first = initial_rows(CONFIG, name, parameter.shape, seed=1)
        assert torch.equal(weights.get(name), first) == (name in FROZEN), name


def test_other_frozen_parameters_are_refused(tmp_path: Path, data: DataSpec) -> None:
    """What had trained would else start again from its first values, in silence."""
    run = frozen_run(tmp_path / "run", data)
    run_workers(run, 1, {"train.max_steps": 9})
    freeze(run, Adapter(frozen=("embed.weight",)))
    (process,) = start_workers(run, 1)
    assert process.wait(timeout=120) == 1
    (error,) = run.errors(1)
    assert error["fatal"] and "other frozen parameters" in error["message"]


def test_frozen_parameters_come_from_init_from(tmp_path: Path, data: DataSpec) -> None:
    base = make_run(tmp_path / "base", data, {"train.max_steps": 5, "model.vocab_size": 130})  # with more rows
    run_workers(base, 1)
    run = frozen_run(tmp_path / "run", data)
    start = {"model.init_from": newest(base), "checkpoint.export": True}
    run_workers(run, 1, {**start, "train.max_steps": 9})
    run_workers(run, 1, start)
    theirs, mine, exported = (open_weights(where)[1] for where in (newest(base), newest(run), run.path("weights")))
    for name in parameters(CONFIG):
        same_rows = theirs.get(name)[: len(mine.get(name))]
        assert torch.equal(mine.get(name), same_rows) == (name in FROZEN), name
        assert torch.equal(mine.get(name), exported.get(name)), name


def test_other_weights_in_the_place_of_the_base_are_refused(tmp_path: Path, data: DataSpec) -> None:
    """By the resume and by whoever reads the run; the same weights in another format are the same base."""
    config = CONFIG
    base = tmp_path / "base"
    weights = weights_of(random_model(config))
    save_hf(weights, config, str(base))
    run = frozen_run(tmp_path / "run", data)
    run_workers(run, 1, {"model.init_from": str(base), "train.max_steps": 3})
    folder = newest(run)
    expected = open_weights(folder)[1].get("embed.weight")
    shutil.rmtree(base)
    save_hf(weights, config, str(base), max_file_bytes=20_000)
    assert torch.equal(open_weights(folder)[1].get("embed.weight"), expected)
    other = {name: tensor + 0.01 for name, tensor in weights.items()}
    shutil.rmtree(base)
    save_hf(other, config, str(base))
    with pytest.raises(ValueError, match=f"trained over the weights of {base}, and other weights lie there now"):
        open_weights(folder)[1].get("embed.weight")
    (process,) = start_workers(run, 1, {"model.init_from": str(base)})
    assert process.wait(timeout=120) == 1
    assert "other weights lie there now" in run.errors(1)[0]["message"]
