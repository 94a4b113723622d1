"""FSDP is told which block comes next, where others have parts of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from launchyard.training.build import build_model
from launchyard.training.recipe import Recipe
from tests.support.tiny_models import llama


@pytest.fixture(params=[1, 2])
def ranks(request: pytest.FixtureRequest) -> Iterator[int]:
    """A group of so many, of which this process is the only one that there is."""
    import torch.testing._internal.distributed.fake_pg  # noqa: F401  which makes its backend known

    dist.init_process_group("fake", rank=0, world_size=request.param, store=dist.HashStore())
    yield request.param
    dist.destroy_process_group()


def test_each_block_asks_for_the_next(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[FSDPModule, list[FSDPModule]]] = []
    real = FSDPModule.set_modules_to_forward_prefetch

    def spy(block: FSDPModule, others: list[FSDPModule]) -> None:
        asked.append((block, others))
        real(block, others)

    monkeypatch.setattr(FSDPModule, "set_modules_to_forward_prefetch", spy)
    config = llama()
    recipe = Recipe.model_validate({
        "name": "x", "model": config.model_dump(exclude_none=True), "data": {"source": "x"},
        "train": {"max_steps": 1, "global_batch_size": 2, "precision": "bf16", "device": "cpu"},
    })  # fmt: skip
    model = build_model(config, recipe, world_size=ranks, device=torch.device("cpu"), fill=False)
    first, second, third = model.blocks
    assert asked == ([(first, [second]), (second, [third])] if ranks == 2 else [])
