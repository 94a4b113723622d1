"""No step makes the host wait for the device, but for those that are known to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.zoo import config_from_hf
from launchyard.training import build
from launchyard.training.data.micro_batch import MicroBatch, micro_batches
from launchyard.training.data.reader import Batch
from launchyard.training.objectives.next_token import NextToken
from launchyard.training.optim.grad_norms import GradNorms
from launchyard.training.precision.loss_scale import ScaledObjective
from launchyard.training.precision.rounded import open_optimizer
from launchyard.training.recipe import Recipe
from launchyard.training.step import UpdateRules, train_step
from tests.support.architectures import ARCHITECTURES
from tests.training.device.host_syncs import HostSyncError, NoHostSync, shapes_alone

CPU = torch.device("cpu")
DEVICES = [
    "meta",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.version.cuda, reason="needs a build of torch for CUDA")),
]
# Windows; sinks and experts; distances.
FEW = [("mistral", "lora"), ("gpt-oss", "documents"), ("bloom", "rows")]
REST = [(name, kind) for name in ARCHITECTURES for kind in ("rows", "documents", "lora") if (name, kind) not in FEW]
FAMILIES = [*FEW, *(pytest.param(*case, marks=pytest.mark.families) for case in REST)]
OPTIMIZERS = ["adamw", "lion", "muon", "sgd", "adamw-schedule-free", "adamw-8bit"]
DOCUMENTS = ((5, 19), (24,), (3, 4), (10,))


@pytest.fixture(autouse=True)
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh asks its device for numbers; the weights of one worker are the same without it. Fake tensors cannot be
    swapped into a module."""
    monkeypatch.setattr(build, "needs_sharding", lambda *_, **__: False)
    monkeypatch.setattr(build, "_make_room", make_room)


def make_room(model: nn.Module, device: torch.device, *, on_cpu: bool) -> None:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            made = torch.empty_like(parameter, device=device)
            setattr(module, name, nn.Parameter(made, requires_grad=parameter.requires_grad))


def make_recipe(config: ModelConfig, precision: str, optimizer: str) -> Recipe:
    return Recipe.model_validate({
        "name": "x", "model": config.model_dump(exclude_none=True), "data": {"source": "x"},
        "optimizer": {"name": optimizer},
        "train": {"max_steps": 1, "global_batch_size": 4, "precision": precision, "device": "cpu",
                  "load_balancing_loss": 0.5 if config.moe else 0.0},
    })  # fmt: skip


def batches(*, packed: bool) -> list[MicroBatch]:
    tokens = torch.zeros(4, 24, dtype=torch.int64)
    return micro_batches(Batch(tokens, tokens, 96, 0, DOCUMENTS if packed else None), 2, CPU)


def two_steps(
    name: str,
    device: str,
    *,
    precision: str = "bf16-true",
    kind: str = "rows",
    rules: UpdateRules | None = None,
    loss_scale: float | None = None,
    optimizer: str = "adamw",
    watches: Callable[[], Iterator[AbstractContextManager[Any]]] | None = None,
) -> None:
    """The first makes tables and moments; in the second nothing waits."""
    config = config_from_hf(ARCHITECTURES[name])
    recipe = make_recipe(config, precision, optimizer)
    objective = NextToken() if loss_scale is None else ScaledObjective(NextToken(), loss_scale)
    adapter = Adapter(kind="lora", r=4) if kind == "lora" else None
    on_host = batches(packed=kind == "documents")
    with shapes_alone(device):
        there = torch.device(device)
        model = build.build_model(config, recipe, world_size=1, device=there, fill=False, adapter=adapter)
        made = open_optimizer(model, recipe)
        norms = GradNorms(model, [], every=1, copies=1)
        for number, watch in enumerate((watches or first_unwatched)(), start=1):
            with watch:
                train_step(
                    model,
                    made,
                    [part.to(there) for part in on_host],
                    n_parts=96,
                    number=number,
                    lr=1e-3,
                    max_grad_norm=1.0,
                    objective=objective,
                    rules=rules or UpdateRules(observe=norms.observer(number)),
                )


def first_unwatched() -> Iterator[AbstractContextManager[Any]]:
    yield nullcontext()
    yield NoHostSync()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "kind"), FAMILIES)
def test_no_family_waits(name: str, kind: str, device: str) -> None:
    two_steps(name, device, kind=kind)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_optimizer_waits(optimizer: str, device: str) -> None:
    if device == "cuda" and optimizer in ("adamw-8bit", "adamw-schedule-free"):
        pytest.skip("it reads numbers of its own on the host, which fake tensors do not know there")
    two_steps("mistral", device, precision="fp32", optimizer=optimizer)


@pytest.mark.parametrize(
    "options",
    [
        {"loss_scale": 2.0},
        {"rules": UpdateRules(accepts=lambda means, _: bool(means[0] > 0))},
        {"optimizer": "adafactor"},
    ],
    ids=["fp16", "guard", "adafactor"],
)
def test_steps_that_are_known_to_wait_do(options: dict[str, Any]) -> None:
    """Whether to update depends on the gradient's numbers, and an Adafactor's rate on the size of its weights."""
    with NoHostSync(), pytest.raises(HostSyncError):
        two_steps("mistral", "meta", precision="fp32", **options)
