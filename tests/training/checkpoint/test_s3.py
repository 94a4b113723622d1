"""Checkpoints in a real store: any number of ranks to any other, in parts, and few requests for many tensors."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import xxhash
from torch import nn

from launchyard.run import events
from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.storage import retry
from launchyard.storage.shards import read_manifest, read_tensor, verify
from launchyard.storage.stores import s3 as s3_store
from launchyard.training.checkpoint import cleaning, parts
from launchyard.training.checkpoint.state import shards
from launchyard.training.distributed import connect, disconnect, read_world
from launchyard.training.optim.base import Optimizer
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.sections.optimizer import OptimizerConfig
from tests.support.faultproxy import FaultProxy
from tests.support.faults import Answer, Request, where
from tests.support.ranks import run_ranks
from tests.support.store import Bucket
from tests.training.checkpoint.test_checkpointer import checkpointer, fresh

pytestmark = pytest.mark.s3
PART, PIECE = 5 << 20, 700 << 10


def trained() -> tuple[nn.Module, Optimizer]:
    """12 MB: rows that no number of ranks divides, many small tensors, a scalar; moments that are not zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(509, 1021), nn.Linear(1021, 509), *(nn.LayerNorm(509) for _ in range(9)))
    model.register_parameter("gain", nn.Parameter(torch.ones(1)))
    optimizer = make_optimizer(model, OptimizerConfig())
    for step in range(2):
        x = torch.randn(4, 509, generator=torch.Generator().manual_seed(step))
        (model(x).square().sum() * model.gain.sum()).backward()
        optimizer.step(step + 1, 0.01)
        optimizer.zero_grad()
    return model, optimizer


def forget(model: nn.Module, optimizer: Optimizer) -> None:
    for shard in shards(model, optimizer).values():
        shard.tensor.fill_(float("nan"))


def _load_and_save(folder: str, step: int) -> None:
    """One rank: load the step before, see that it is all there, and save it as the next."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    s3_store.UPLOAD_PART_BYTES, parts.PIECE_BYTES = PART, PIECE
    world, run = read_world(), RunDir(folder)
    expected = shards(*trained())
    connect(world, torch.device("cpu"))
    model, _ = trained()
    fully_shard(model, mesh=init_device_mesh("cpu", (world.world_size,), mesh_dim_names=("dp_shard",)))
    optimizer = make_optimizer(model, OptimizerConfig())
    forget(model, optimizer)
    writer = checkpointer(run, background=True)
    manifest = writer.load_newest(shards(model, optimizer))
    assert manifest is not None and manifest.step == step - 1
    for key, shard in shards(model, optimizer).items():
        box = tuple(slice(at, at + n) for at, n in zip(shard.offsets, shard.tensor.shape, strict=True))
        assert torch.equal(expected[key].tensor[box], shard.tensor), key
    writer.save(step, shards(model, optimizer), {"step": step}, "permanent")
    writer.wait(must_succeed=True)
    disconnect()


def digests(run: RunDir, step: int) -> dict[str, str]:
    folder = run.path(run.checkpoint_dir(step))
    manifest = read_manifest(folder)
    assert list(verify(folder, manifest)) == []
    return {
        key: xxhash.xxh3_64_hexdigest(parts.as_bytes(read_tensor(folder, manifest, key))) for key in manifest.tensors
    }


def save_first(run: RunDir, model: nn.Module, optimizer: Optimizer) -> None:
    writer = checkpointer(run, background=True)
    writer.save(1, shards(model, optimizer), {"step": 1}, "permanent")
    writer.wait(must_succeed=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_to_two_to_four_to_three_to_one(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "UPLOAD_PART_BYTES", PART)
    monkeypatch.setattr(parts, "PIECE_BYTES", PIECE)
    run, whole = RunDir(f"{s3.url}/run"), trained()
    save_first(run, *whole)
    for step, world_size in enumerate((2, 4, 3), start=2):
        run_ranks(world_size, _load_and_save, run.url, step)
    assert [
        read_manifest(run.path(run.checkpoint_dir(step))).world_size for step in committed_steps(run)
    ] == [1, 2, 4, 3]  # fmt: skip
    first = {key: xxhash.xxh3_64_hexdigest(parts.as_bytes(shard.tensor)) for key, shard in shards(*whole).items()}
    assert sum(key.startswith("optimizer.") for key in first) == 2 * len(list(whole[0].parameters()))
    for step in committed_steps(run):
        assert digests(run, step) == first, step
    forget(*whole)
    checkpointer(run).load_newest(shards(*whole))
    assert {
        key: xxhash.xxh3_64_hexdigest(parts.as_bytes(shard.tensor)) for key, shard in shards(*whole).items()
    } == first
    assert s3.uploads() == []


def lists_uploads(request: Request) -> bool:
    return request.method == "GET" and "uploads" in request.query


def cleanings(heard: list[tuple[str, dict[str, str]]]) -> list[str]:
    return [facts["what"] for name, facts in heard if name == events.CLEANUP_FAILED]


def save_three(run: RunDir, heard: list[Any]) -> None:
    """With a budget of minutes, as a run has."""
    writer, (model, optimizer) = checkpointer(run, heard, keep=1), fresh()
    with retry.retry_budget(600):
        for step in (1, 2, 3):
            writer.save(step, shards(model, optimizer), {"step": step}, "permanent")
            writer.wait(must_succeed=True)


@pytest.mark.parametrize("denial", [Answer(403, "AccessDenied"), Answer(501, "NotImplemented")], ids=repr)
def test_cleaning_that_is_denied_costs_one_request_and_is_said_once(
    denial: Answer, s3: Bucket, proxy: FaultProxy
) -> None:
    run, heard = RunDir(f"{s3.url}/run"), list[Any]()
    uploads = proxy.fault(denial, lists_uploads)
    removals = proxy.fault(denial, where(method="DELETE"))
    began = time.monotonic()
    save_three(run, heard)
    assert time.monotonic() - began < 10
    assert (uploads.hits, removals.hits) == (1, 1)
    assert cleanings(heard) == [cleaning.UPLOADS, cleaning.OLD]
    assert all("s3:" in facts["message"] or "offer" in facts["message"] for _, facts in heard if "what" in facts)
    assert committed_steps(run) == [1, 2, 3], "nothing of a checkpoint goes whose manifest stays"
    assert all(digests(run, step) for step in (1, 2, 3))


def test_cleaning_that_fails_is_made_up_for_after_the_next_save(s3: Bucket, proxy: FaultProxy) -> None:
    run, heard = RunDir(f"{s3.url}/run"), list[Any]()
    save_three(run, [])
    leftover = f"{run.checkpoint_dir(9)}/0000-rank-00000.safetensors"
    run.write_text(leftover, "x")
    uploads = proxy.fault(Answer(503), lists_uploads, times=1)
    removals = proxy.fault(Answer(503), where(method="DELETE"), times=2)
    writer, (model, optimizer) = checkpointer(run, heard, keep=1), fresh()
    for step in (4, 5):
        writer.save(step, shards(model, optimizer), {"step": step}, "permanent")
        writer.wait(must_succeed=True)
    assert (uploads.hits, removals.hits) == (1, 2)
    assert sorted(cleanings(heard)) == sorted([cleaning.UPLOADS, cleaning.OLD, cleaning.FILES])
    assert committed_steps(run) == [4, 5] and not run.exists(leftover)


def test_small_tensors_share_a_request(s3: Bucket, proxy: FaultProxy) -> None:
    run, whole = RunDir(f"{s3.url}/run"), trained()
    save_first(run, *whole)
    assert checkpointer(run).load_newest(shards(*whole)) is not None
    asked = proxy.requests(where(method="GET", key=r"safetensors$"))
    assert len(shards(*whole)) > 60
    assert len(asked) == 3, "the header, the hashes, and 12 MB of pieces that lie together"
