"""Low-rank updates in training: what they change at first, what trains, cuts over ranks, what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from launchyard.model.adapt.forms import form_of
from launchyard.model.adapter import PROMPTED, Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import adapter_shapes, parameters
from launchyard.model.memory import checkpoint_bytes
from launchyard.model.weights.load import load, open_weights
from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.storage.shards import open_shards, read_manifest, verify
from launchyard.training.build import build_model
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.distributed import connect, disconnect, read_world
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.parallel import clean_name, local, shard_extent
from launchyard.training.recipe import Recipe
from launchyard.training.spec import DataSpec
from launchyard.training.step import forward_backward, train_step
from tests.support.ranks import run_ranks
from tests.support.small_runs import MODEL, final_weights, history, make_run, run_workers, write_data
from tests.support.tiny_models import llama, neox, random_tokens

CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "r": 4},
    "rslora": {"kind": "lora", "scaling": "alpha/sqrt(r)", "ranks": {"q_proj": 2}, "alphas": {"up_proj": 3.0}},
    "dora": {"kind": "dora", "r": 4},
    "tables": {"kind": "lora", "targets": ["embed", "lm_head", "v_proj"], "trained": ["norm.weight"]},
    "dropout": {"kind": "lora", "dropout": 0.3},
    "qlora": {"kind": "qlora"},
    "tokens": {"kind": "lora", "tokens": [3, 0, 7]},
    "prompts": {"kind": "llama-adapter", "prompt_tokens": 3},
    "prompts, v2": {"kind": "llama-adapter-v2", "targets": ["o_proj", "up_proj", "lm_head"], "quantize": "nf4"},
}
CONFIGS = {"neox": neox(), "llama, tied": llama(tie_embeddings=True)}


def recipe_of(config: ModelConfig, **train: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x", "model": config.model_dump(exclude_none=True), "data": {"source": "x"},
            "train": {"max_steps": 1, "global_batch_size": 4, "device": "cpu", **train},
        }
    )  # fmt: skip


def built(config: ModelConfig, adapter: Adapter | None, world_size: int = 1, **train: Any) -> torch.nn.Module:
    return build_model(config, recipe_of(config, **train), world_size=world_size, device=CPU, adapter=adapter)


@torch.no_grad()
def stir(model: torch.nn.Module, config: ModelConfig, adapter: Adapter) -> None:
    """Updates that are not zero, the same for any cut."""
    shapes = adapter_shapes(config, adapter)
    for raw_name, parameter in model.named_parameters():
        name = clean_name(raw_name)
        if name in shapes and not name.endswith("magnitude"):
            generator = torch.Generator().manual_seed(sum(name.encode()))
            whole = torch.randn(shapes[name], generator=generator) * 0.2
            offsets, sizes = shard_extent(parameter)
            local(parameter).copy_(whole[tuple(slice(at, at + n) for at, n in zip(offsets, sizes, strict=True))])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["lora", "dora", "tables"])
def test_at_first_nothing_changes_and_then_only_the_adapter_does(name: str, kind: str) -> None:
    config, adapter = CONFIGS[name], Adapter.model_validate(KINDS[kind])
    model = built(config, adapter)
    tokens = random_tokens(config, 4, 16)
    torch.testing.assert_close(model(tokens), built(config, None)(tokens), rtol=0, atol=1e-6)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = make_optimizer(model, recipe_of(config).optimizer)
    for number in (1, 2, 3):
        batch = [MicroBatch(tokens[:, :-1], tokens[:, 1:])]
        train_step(model, optimizer, batch, n_parts=60, number=number, lr=0.01, max_grad_norm=1.0)
    layout = parameters(config, adapter)
    changed = {key for key, p in model.named_parameters() if not torch.equal(before[key], p)}
    assert changed == {key for key, parameter in layout.items() if parameter.trained}


def gradients(config: ModelConfig, adapter: Adapter, world_size: int, rank: int) -> dict[str, tuple[Any, Tensor]]:
    model = built(config, adapter, world_size)
    stir(model, config, adapter)
    share = 4 // world_size
    tokens = random_tokens(config, 4, 17)[rank * share : (rank + 1) * share]
    model.moment.step = 5
    batches = [MicroBatch(tokens[n : n + 1, :-1], tokens[n : n + 1, 1:], first_slot=rank * share + n)
               for n in range(share)]  # fmt: skip
    forward_backward(model, batches, n_parts=64)
    return {clean_name(name): (shard_extent(p), local(p.grad)) for name, p in model.named_parameters()
            if p.grad is not None}  # fmt: skip


def shared_kinds() -> list[str]:
    """A torch before 2.12 cuts no base of bytes, which a plan refuses there."""
    cuts = TorchVersion(torch.__version__) >= "2.12"
    return [kind for kind, given in KINDS.items() if cuts or form_of(Adapter.model_validate(given)) is None]


def _compare(folder: str) -> None:
    world = read_world()
    connect(world, CPU)
    for kind, name in ((kind, name) for kind in shared_kinds() for name in CONFIGS):
        whole = torch.load(f"{folder}/{kind} {name}")
        parts = gradients(CONFIGS[name], Adapter.model_validate(KINDS[kind]), 2, world.rank)
        assert parts.keys() == whole.keys()
        for key, ((offsets, sizes), part) in parts.items():
            expected = whole[key][tuple(slice(at, at + n) for at, n in zip(offsets, sizes, strict=True))]
            torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-6, msg=lambda m, k=(kind, key): f"{k}: {m}")
    disconnect()


def test_two_sharded_ranks_have_the_gradients_of_one_process(tmp_path: Path) -> None:
    for kind, name in ((kind, name) for kind in shared_kinds() for name in CONFIGS):
        parts = gradients(CONFIGS[name], Adapter.model_validate(KINDS[kind]), 1, 0)
        torch.save({key: grad for key, (_, grad) in parts.items()}, tmp_path / f"{kind} {name}")
    run_ranks(2, _compare, str(tmp_path))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


def adapted_run(folder: Path, data: DataSpec, adapter: Adapter) -> RunDir:
    run = make_run(folder, data, {"schedule.name": "constant"})
    run.write_json("plan.json", {**run.read_json("plan.json"), "adapter": adapter.model_dump(mode="json")})
    return run


@pytest.mark.parametrize(
    "kind", ["dropout", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "dropout")]
)
def test_a_run_that_changed_its_size_is_the_run_that_did_not(tmp_path: Path, data: DataSpec, kind: str) -> None:
    adapter = Adapter.model_validate(KINDS[kind])
    config = ModelConfig.model_validate(MODEL)
    expected, run = (adapted_run(tmp_path / name, data, adapter) for name in ("undisturbed", "resized"))
    run_workers(expected, 1)
    run_workers(run, 1, {"train.max_steps": 5})
    run_workers(run, 1)
    assert history(run) == history(expected)
    mine, theirs = final_weights(run), final_weights(expected)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    folder = run.path(run.checkpoint_dir(committed_steps(run)[-1]))
    manifest = read_manifest(folder)
    assert list(verify(folder, manifest)) == []
    opened = open_shards(folder, manifest)
    pieces = [piece for name in manifest.files for _, piece in opened.pieces_in(name)]
    assert sum(piece.length for piece in pieces) == checkpoint_bytes(config, adapter)


@pytest.mark.parametrize(
    "kind",
    [
        "rslora",
        "dora",
        "tables",
        "qlora",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("tokens", "prompts, v2")),
    ],
)
def test_what_is_loaded_is_the_base_with_its_adapter(tmp_path: Path, data: DataSpec, kind: str) -> None:
    adapter = Adapter.model_validate({**KINDS[kind], "trained": []})
    run = adapted_run(tmp_path / "run", data, adapter)
    run_workers(run, 1)
    config = ModelConfig.model_validate(MODEL)
    recipe = Recipe.model_validate({**recipe_of(config).model_dump(exclude_none=True), "train": {
        "max_steps": 1, "seed": 1, "global_batch_size": 4}})  # fmt: skip
    model = build_model(config, recipe, world_size=1, device=CPU, adapter=adapter)
    saved = final_weights(run)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(saved[f"model.{name}"])
    tokens = random_tokens(config, 2, 16)
    loaded = load(run.url, device="cpu")
    torch.testing.assert_close(loaded.transformer(tokens), model(tokens), rtol=0, atol=1e-4)
    if adapter.kind in PROMPTED:
        return
    _, weights = open_weights(run.url)
    assert set(weights.keys()) == set(parameters(loaded.config))
