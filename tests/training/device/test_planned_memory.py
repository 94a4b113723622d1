"""The plan's memory of a worker that FSDP cuts, beside torch's tracker of it; the other seven are not there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from launchyard.model.config import ModelConfig
from launchyard.model.cost import n_params
from launchyard.model.memory import Checkpointing, Savings, training_memory
from launchyard.model.zoo import preset
from launchyard.training.build import build_model
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.recipe import Recipe
from launchyard.training.step import forward_backward

RANKS = 8
MICRO_BATCH, SEQ_LEN = 1, 16


@pytest.fixture
def absent_workers() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    yield
    dist.destroy_process_group()


def config(vocab_size: int) -> ModelConfig:
    """Of the shape of a large model: a table and a head that are not tied, beside few activations."""
    sizes = {"dim": 128, "n_layers": 4, "n_heads": 2, "n_kv_heads": 2, "head_dim": 64, "ffn_dim": 256}
    words = {"vocab_size": vocab_size, "padded_vocab_size": vocab_size}
    return ModelConfig.model_validate({**preset("llama-3.1-8b").model_dump(), **sizes, **words})


def tracked(model_config: ModelConfig, checkpointing: Checkpointing) -> int:
    """Bytes of this worker at the peak of a forward and a backward, with the moments that its optimizer would have."""
    parallel = {"activation_checkpointing": checkpointing}
    facts = {"name": "m", "model": {"preset": "llama-3.1-8b"}, "data": {"source": "x"}, "parallel": parallel}
    recipe = Recipe.model_validate({**facts, "train": {"max_steps": 1, "precision": "bf16"}})
    model = build_model(model_config, recipe, world_size=RANKS, device=torch.device("cpu"), fill=False)
    tracker = FSDPMemTracker(model)
    tracker.track_inputs(())
    tokens = torch.zeros(2, MICRO_BATCH, SEQ_LEN, dtype=torch.long)
    with tracker:
        forward_backward(model, [MicroBatch(tokens[0], tokens[1])], n_parts=tokens[0].numel())
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    return int(peak) + 2 * 4 * n_params(model_config) // RANKS


@pytest.mark.parametrize("vocab_size", [2_000, 20_000])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_the_plan_is_within_5_percent_of_the_tracker(
    vocab_size: int, checkpointing: Checkpointing, absent_workers: None
) -> None:
    """With many words the most is at the end of the backward, where table and head are reduced as one."""
    found = training_memory(
        config(vocab_size),
        micro_batch_size=MICRO_BATCH,
        seq_len=SEQ_LEN,
        shards=RANKS,
        precision="bf16",
        device="cpu",
        savings=Savings(checkpointing),
    )
    assert found["total"] == pytest.approx(tracked(config(vocab_size), checkpointing), rel=0.05)
