"""A checkpoint of the first format, whose manifest lists every piece: three ranks of an older version saved it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from launchyard.run.rundir import RunDir
from launchyard.storage.safetensors import TensorFile
from launchyard.storage.shards import MANIFEST, read_head, read_manifest, read_tensor, verify
from launchyard.training.checkpoint.checkpointer import Checkpointer
from launchyard.training.checkpoint.state import shards
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.sections.optimizer import OptimizerConfig
from tests.training.checkpoint.test_checkpointer import checkpointer, toy

OLD = Path(__file__).parent / "first_format"
STEP = 7


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    shutil.copytree(OLD, tmp_path / "run")
    return RunDir(str(tmp_path / "run"))


def old_folder(run: RunDir, step: int = STEP) -> Path:
    return Path(run.path(run.checkpoint_dir(step)))


def entries(folder: Path) -> dict[tuple[str, tuple[int, ...]], Tensor]:
    """What the files themselves say, by key and offsets."""
    found = {}
    for path in folder.glob("*.safetensors"):
        file = TensorFile(str(path))
        for name in file.entries:
            key, _, offsets = name.partition("@")
            found[key, tuple(map(int, filter(None, offsets.split(","))))] = file.get(name)
    return found


def loaded(run: RunDir) -> tuple[Checkpointer, dict[str, Tensor]]:
    model = toy()
    state = shards(model, make_optimizer(model, OptimizerConfig()))
    reader = checkpointer(run)
    assert reader.load_newest(state) is not None
    return reader, {key: shard.tensor for key, shard in state.items()}


def test_it_is_loaded_and_saved_again_bit_by_bit(run: RunDir) -> None:
    pieces = entries(old_folder(run))
    writer, state = loaded(run)
    assert {key for key, _ in pieces} == state.keys()
    for (key, offsets), piece in pieces.items():
        box = tuple(slice(at, at + size) for at, size in zip(offsets, piece.shape, strict=True))
        assert torch.equal(state[key][box], piece), key
    model = toy()
    saved = shards(model, make_optimizer(model, OptimizerConfig()))
    for key, shard in saved.items():
        shard.tensor.copy_(state[key])
    writer.save(8, saved, {"step": 8}, "permanent")
    writer.wait(must_succeed=True)
    folder = str(old_folder(run, 8))
    assert read_manifest(folder).format == 2 and not read_manifest(folder).tensors["model.0.bias"].pieces
    assert all(torch.equal(read_tensor(folder, read_manifest(folder), key), one) for key, one in state.items())


def test_it_is_verified_and_its_head_is_read(run: RunDir) -> None:
    folder = str(old_folder(run))
    manifest = read_manifest(folder)
    assert manifest.format == 1 and list(verify(folder, manifest)) == []
    head = read_head(folder)
    assert head is not None and (head.attempt, head.kind) == (0, "permanent")


@pytest.mark.parametrize("at", [-3, 20], ids=["a piece", "the header"])
def test_a_flipped_bit_is_found(run: RunDir, at: int) -> None:
    path = sorted(old_folder(run).glob("*.safetensors"))[1]
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    (fault, *_) = verify(str(path.parent), read_manifest(str(path.parent)))
    assert path.name in fault and "changed" in fault
    assert (path.parent / MANIFEST).exists()
