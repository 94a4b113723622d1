"""Folders that are not what their config.json says: one error each, which names the file or folder and the tensor."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from launchyard.model.weights.hf import HFWeights
from launchyard.model.weights.hf_export import save_hf
from launchyard.storage.errors import CorruptError
from tests.support.tiny_models import edit_json, llama, random_model, weights_of

PROJECTION = "model.layers.1.self_attn.q_proj.weight"


class Evil:
    """Pickled, it is a call that runs when somebody opens the file."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(Path(os.environ["TRAP"])),)


def _change(folder: Path, **changed: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    tensors = {**load_file(file), **changed}
    save_file({key: value for key, value in tensors.items() if value is not None}, file, metadata={"format": "pt"})


def _cut(folder: Path, n_bytes: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:n_bytes])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({PROJECTION: Evil()}))


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing tensor": (lambda folder: _change(folder, **{PROJECTION: None}), rf"missing {re.escape(PROJECTION)}"),
    "extra tensor": (lambda folder: _change(folder, **{"model.extra.weight": torch.zeros(2)}), r"model\.extra\.weight"),
    "misshapen tensor": (
        lambda folder: _change(folder, **{PROJECTION: torch.zeros(47, 48)}),
        rf"{re.escape(PROJECTION)} has shape \[47, 48\]",
    ),
    "one dimension too many": (
        lambda folder: _change(folder, **{PROJECTION: torch.zeros(1, 48, 48)}),
        rf"{re.escape(PROJECTION)} has shape \[1, 48, 48\]",
    ),
    "cut in the data": (lambda folder: _cut(folder, -8), r"model\.safetensors is cut"),
    "cut in the header": (lambda folder: _cut(folder, 100), r"model\.safetensors.* is cut"),
    "cut to nothing": (lambda folder: _cut(folder, 0), r"model\.safetensors.* is cut"),
    "more layers": (lambda folder: _set(folder, num_hidden_layers=4), r"missing model\.layers\.3\."),
    "fewer layers": (lambda folder: _set(folder, num_hidden_layers=2), r"unknown model\.layers\.2\."),
    "other vocabulary": (lambda folder: _set(folder, vocab_size=140), r"has shape \[131, 48\].*\[140, 48\]"),
    "other width": (lambda folder: _set(folder, intermediate_size=90), r"mlp\.\w+\.weight has shape"),
    "other family": (lambda folder: _set(folder, model_type="gpt_neox"), r"config\.json|missing gpt_neox"),
    "pickle with code": (_pickle, r"pytorch_model\.bin"),
}


def _set(folder: Path, **keys: object) -> None:
    edit_json(folder / "config.json", **keys)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_error_that_names_it(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "trap"))
    folder = tmp_path / "model"
    config = llama()
    save_hf(weights_of(random_model(config)), config, str(folder))
    HFWeights(str(folder))
    make, said = FAULTS[fault]
    make(folder)
    with pytest.raises((ValueError, CorruptError), match=rf"(?s){said}") as caught:
        weights = HFWeights(str(folder))
        [weights.get(key) for key in weights.keys()]  # noqa: SIM118
    assert str(folder) in str(caught.value) or fault == "other family"
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("at", [8, 20, 60])
def test_a_changed_byte_of_the_header_is_an_error_that_names_the_file(at: int, tmp_path: Path) -> None:
    config = llama()
    save_hf(weights_of(random_model(config)), config, str(tmp_path))
    file = tmp_path / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[at] ^= 0x55
    file.write_bytes(bytes(raw))
    with pytest.raises((ValueError, CorruptError), match=re.escape(str(tmp_path))):
        HFWeights(str(tmp_path))


def test_an_index_that_lies_is_named(tmp_path: Path) -> None:
    config = llama()
    save_hf(weights_of(random_model(config)), config, str(tmp_path), max_file_bytes=20_000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    key = next(iter(index["weight_map"]))
    other = next(name for name in index["weight_map"].values() if name != index["weight_map"][key])
    index["weight_map"][key] = other
    path.write_text(json.dumps(index))
    with pytest.raises(CorruptError, match=rf"{re.escape(other)} does not hold {re.escape(key)}"):
        HFWeights(str(tmp_path))
