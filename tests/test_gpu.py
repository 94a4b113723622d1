"""What only a GPU can show: bf16, pinned staging, the compiler, and the same loss as on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from launchyard.model.network.documents import Documents
from launchyard.model.network.transfers import ReadBack
from launchyard.training.data.micro_batch import micro_batches
from launchyard.training.data.reader import Batch
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.sections.optimizer import OptimizerConfig
from launchyard.training.step import train_step
from tests.support.small_runs import RECIPE, history, make_run, run_workers, write_data
from tests.support.tiny_models import llama, random_model, random_tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]
GPU = {"train.device": "cuda", "train.max_steps": 24}


def trained(folder: Path, overrides: dict[str, Any]) -> list[tuple[Any, ...]]:
    run = make_run(folder / "run", write_data(folder / "data"), overrides)
    run_workers(run, 1, device=str(overrides.get("train.device", "cpu")))
    return history(run)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train.precision": "bf16"},
        {"train.precision": "bf16", "parallel.compile": True, "parallel.activation_checkpointing": "full"},
    ],
    ids=["fp32", "bf16", "bf16, compiled, recomputed"],
)
def test_the_gpu_trains_as_the_cpu_does(tmp_path: Path, options: dict[str, Any]) -> None:
    assert RECIPE["train"]["device"] == "cpu"
    cpu = trained(tmp_path / "cpu", {"train.max_steps": 24})
    gpu = trained(tmp_path / "gpu", {**GPU, **options})
    assert [row[-1] for row in gpu] == [row[-1] for row in cpu], "other data"
    loose = 2e-2 if options else 1e-4
    for mine, theirs in zip(gpu, cpu, strict=True):
        assert mine[1] == pytest.approx(theirs[1], rel=loose)


def test_a_resume_on_the_gpu_goes_on_where_it_was(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    whole = make_run(tmp_path / "whole", data, GPU)
    run_workers(whole, 1, device="cuda")
    parts = make_run(tmp_path / "parts", data, {**GPU, "schedule.name": "constant"})
    run_workers(parts, 1, {"train.max_steps": 10}, device="cuda")
    run_workers(parts, 1, {"train.max_steps": 24}, device="cuda")
    assert [row[0] for row in history(parts)] == list(range(1, 25))
    assert [row[-1] for row in history(parts)] == [row[-1] for row in history(whole)]


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 8, "layers": ("window",)}, {"attention_softcap": 20.0}],
    ids=["plain", "window", "capped"],
)
@torch.no_grad()
def test_documents_are_apart_on_the_gpu(options: dict[str, Any]) -> None:
    """By one kernel where there is one, else one after the other; in bf16, beside the CPU in fp32."""
    config = llama(dim=64, n_heads=4, head_dim=16, **options)
    model = random_model(config, std=0.1)
    documents = Documents((3, 1, 24, 9), 64)
    tokens = random_tokens(config, 1, documents.n_tokens)
    expected = model(tokens, documents=documents)
    found = model.to("cuda", torch.bfloat16)(tokens.cuda(), documents=documents).float().cpu()
    assert float((found - expected).abs().max()) < 5e-2 * float(expected.abs().max())


@pytest.mark.parametrize("packed", [False, True])
def test_no_step_makes_the_host_wait(packed: bool) -> None:
    """By torch's own word. Of one worker in bf16, its second step."""
    tokens = torch.zeros(4, 24, dtype=torch.int64)
    lengths = ((5, 19), (24,), (3, 4), (10,)) if packed else None
    config = llama(dim=64, n_heads=4, head_dim=16)
    model = random_model(config, std=0.02).train().to("cuda", torch.bfloat16)
    optimizer = make_optimizer(model, OptimizerConfig())
    device = torch.device("cuda")
    try:
        for number, mode in ((1, "default"), (2, "error")):
            torch.cuda.set_sync_debug_mode(mode)
            batches = micro_batches(Batch(tokens, tokens, 96, 0, lengths), 2, device)
            train_step(model, optimizer, batches, n_parts=96, number=number, lr=1e-3, max_grad_norm=1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_numbers_are_read_without_waiting_for_what_came_after() -> None:
    """The device is kept busy behind the copy; the numbers are there while it still works."""
    read = ReadBack(torch.full((3,), 2.0, device="cuda", dtype=torch.float64))
    torch.cuda._sleep(2_000_000_000)
    behind = torch.cuda.Event()
    behind.record()
    assert read.numbers() == [2.0, 2.0, 2.0]
    assert not behind.query()
