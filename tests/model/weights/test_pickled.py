"""Folders of .bin files: read as weights alone, and never run."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from launchyard.model.weights.hf import HFWeights
from launchyard.model.weights.hf_export import save_hf
from launchyard.storage.errors import CorruptError
from tests.support.tiny_models import llama, random_model, weights_of

BIN = "pytorch_model.bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in one .bin file, as transformers 4 saved it."""
    save_hf(weights_of(random_model(llama())), llama(), str(tmp_path))
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / BIN)
    (tmp_path / "model.safetensors").rename(tmp_path / "kept")
    return tmp_path


def tensors(folder: Path) -> dict[str, Tensor]:
    weights = HFWeights(str(folder))
    return {key: weights.get(key) for key in weights.keys()}  # noqa: SIM118


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_weights_are_those_of_safetensors(folder: Path) -> None:
    found = tensors(folder)
    weights = HFWeights(str(folder))
    rows = dict(weights.rows({key: range(1, 3) for key in found}))
    assert all(torch.equal(rows[key], tensor[1:3]) for key, tensor in found.items())
    (folder / BIN).unlink()
    (folder / "kept").rename(folder / "model.safetensors")
    assert same(found, tensors(folder))


def test_several_files_are_read_by_their_index(folder: Path) -> None:
    expected = tensors(folder)
    whole = torch.load(folder / BIN, weights_only=True)
    (folder / BIN).unlink()
    parts: list[dict[str, Tensor]] = [{}, {}]
    for number, (key, tensor) in enumerate(whole.items()):
        parts[number % 2][key] = tensor.clone()
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        torch.save(part, folder / name)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (folder / f"{BIN}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert same(expected, tensors(folder))
    (folder / names[1]).unlink()
    with pytest.raises(CorruptError, match=r"00002-of-00002\.bin is missing"):
        HFWeights(str(folder))


def test_safetensors_come_first(folder: Path) -> None:
    (folder / "kept").rename(folder / "model.safetensors")
    (folder / BIN).write_bytes(b"nonsense")
    assert tensors(folder)


class Harm:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harm-was-done",)


def test_code_in_a_pickle_is_named_and_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    torch.save({"model.norm.weight": Harm()}, folder / BIN)
    with pytest.raises(ValueError, match=rf"{BIN} holds code beside its tensors.*mkdir.*safetensors"):
        HFWeights(str(folder))
    assert not (folder / "harm-was-done").exists()


def test_what_is_no_archive_of_tensors_is_named(folder: Path) -> None:
    whole = torch.load(folder / BIN, weights_only=True)
    torch.save(whole, folder / BIN, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=rf"{BIN} is of the format that torch wrote before 1\.6"):
        HFWeights(str(folder))
    with tarfile.open(folder / BIN, "w") as tar:
        tar.add(folder / "config.json")
    with pytest.raises(ValueError, match=rf"{BIN} is of the format that torch wrote before 1\.6"):
        HFWeights(str(folder))
    torch.save({**whole, "step": 3}, folder / BIN)
    with pytest.raises(ValueError, match=rf"{BIN}: step is a int, no tensor"):
        HFWeights(str(folder))
    torch.save(whole, folder / BIN)
    (folder / BIN).write_bytes((folder / BIN).read_bytes()[:-400])
    with pytest.raises(CorruptError, match=rf"{BIN} is cut"):
        HFWeights(str(folder))
