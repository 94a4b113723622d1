"""Every optimizer over several ranks makes the steps of one, and any number of ranks resumes from any other's state.

Gradients are given, and the same for any number of ranks: what differs is the optimizer's alone. What is loaded is what
was saved, to the bit. Steps are the same but for rounding: a kernel rounds the last numbers of a tensor, which are no
full vector, in another way, and sums over ranks are added up in another order.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from launchyard.run.rundir import RunDir
from launchyard.storage.shards import read_manifest, read_tensor
from launchyard.training.checkpoint import parts
from launchyard.training.checkpoint.checkpointer import Checkpointer
from launchyard.training.checkpoint.commit import Identity
from launchyard.training.checkpoint.state import Shard, shards
from launchyard.training.distributed import connect, disconnect, read_world
from launchyard.training.optim.base import Optimizer
from launchyard.training.optim.optimizers import make_optimizer
from tests.support.ranks import run_ranks
from tests.training.optim.toy import FULL, GROUPS, config_of, make_steps, toy

IDENTITY = Identity(model={"dim": 4}, data_digest="d", recipe_hash="r", versions={})
# What one bit of bf16, or one of 256 levels, makes of such a difference.
ATOL = {"muon": 2e-4, "adamw-8bit": 2e-4}
KEYS = {"groups": GROUPS}


def sharded(replicate: int) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = toy()
    names = ("dp_replicate", "dp_shard")
    size = read_world().world_size
    mesh = init_device_mesh("cpu", (replicate, size // replicate), mesh_dim_names=names)
    fully_shard(model, mesh=mesh if replicate > 1 else mesh["dp_shard"])
    return model


def checkpointer(folder: str) -> Checkpointer:
    return Checkpointer(
        RunDir(folder), read_world(), IDENTITY, keep=None, background=False, on_event=lambda *_, **__: None
    )


def after(name: str, steps: int) -> dict[str, Tensor]:
    """All that a checkpoint holds, by one process that never stopped."""
    model = toy()
    optimizer = make_optimizer(model, config_of(name, **KEYS))
    optimizer.begin(resumed=False)
    make_steps(model, optimizer, range(1, steps + 1))
    return {key: shard.tensor for key, shard in shards(model, optimizer).items()}


def box(shard: Shard) -> tuple[slice, ...]:
    return tuple(slice(at, at + size) for at, size in zip(shard.offsets, shard.tensor.shape, strict=True))


def check_steps(name: str, parts: dict[str, Shard], steps: int) -> None:
    expected = after(name, steps)
    assert parts.keys() == expected.keys()
    for key, shard in parts.items():
        assert shard.shape == tuple(expected[key].shape), f"{name}: {key}"
        mine, theirs = shard.tensor, expected[key][box(shard)]
        if mine.dtype == torch.uint8:
            assert not ((mine.int() - theirs.int()).abs() > 1).any(), f"{name}: {key}"
        else:
            torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=ATOL.get(name, 1e-6), msg=f"{name}: {key}")


def check_loaded(folder: str, parts: dict[str, Shard], step: int) -> None:
    folder = f"{folder}/checkpoints/step-{step:08}"
    manifest = read_manifest(folder)
    for key, shard in parts.items():
        assert torch.equal(shard.tensor, read_tensor(folder, manifest, key)[box(shard)]), f"{folder}: {key}"


def go_on(folder: str, start: int, stop: int, replicate: int) -> None:
    """One rank: from step `start` to `stop` with each optimizer, saved there."""
    parts.PIECE_BYTES = 256  # several pieces a tensor
    connect(read_world(), torch.device("cpu"))
    for name in FULL:
        model = sharded(replicate)
        optimizer: Optimizer = make_optimizer(model, config_of(name, **KEYS))
        writer = checkpointer(f"{folder}/{name}")
        if start:
            with torch.no_grad():
                for p in model.parameters():
                    p.zero_()
            assert writer.load_newest(shards(model, optimizer)) is not None
            check_loaded(f"{folder}/{name}", shards(model, optimizer), start)
        optimizer.begin(resumed=start > 0)
        make_steps(model, optimizer, range(start + 1, stop + 1))
        check_steps(name, shards(model, optimizer), stop)
        writer.save(stop, shards(model, optimizer), {"step": stop}, "permanent")
        writer.wait(must_succeed=True)
    disconnect()


@pytest.mark.parametrize(
    "worlds",
    [
        [(3, 1), (2, 1)],  # of 3 ranks, the last has no rows of some matrices
        pytest.param([(4, 2), (1, 1), (4, 1)], marks=pytest.mark.slow),  # two copies of two
    ],
    ids=str,
)
def test_any_number_of_ranks_goes_on_from_any_other(tmp_path: Path, worlds: list[tuple[int, int]]) -> None:
    for number, (ranks, replicate) in enumerate(worlds):
        run_ranks(ranks, go_on, str(tmp_path), 2 * number, 2 * number + 2, replicate)
    for name in FULL:
        model = toy()
        optimizer = make_optimizer(model, config_of(name, **KEYS))
        checkpointer(str(tmp_path / name)).load_newest(shards(model, optimizer))
        check_steps(name, shards(model, optimizer), 2 * len(worlds))
        check_loaded(f"{tmp_path}/{name}", shards(model, optimizer), 2 * len(worlds))
