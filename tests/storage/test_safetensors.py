"""The safetensors format: the package is the judge of ours, and each reads what the other wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from launchyard.storage.errors import CorruptError
from launchyard.storage.safetensors import (
    ALIGNMENT,
    TORCH_DTYPES,
    TensorFile,
    dtype_code,
    safetensors_header,
    write_tensors,
)


def of_every_type() -> dict[str, Tensor]:
    made = {name: torch.arange(5).to(getattr(torch, name)) for name in TORCH_DTYPES.values()}
    return {**made, "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3), "turned": torch.ones(2, 3).T}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name]), name


def test_what_we_write_the_package_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        entries = {name: (dtype_code(one.dtype), tuple(one.shape)) for name, one in of_every_type().items()}
        write_tensors(file, entries, of_every_type().__getitem__)
    same(load_file(path), of_every_type())


def test_what_the_package_writes_we_read(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.safetensors", {name: one.contiguous() for name, one in of_every_type().items()}
    save_file(tensors, path)
    file = TensorFile(str(path))
    same({name: file.get(name) for name in file.entries}, tensors)


def test_a_header_alone_makes_a_file_of_raw_bytes(tmp_path: Path) -> None:
    """As checkpoints are written: the header first, and then bytes that come from anywhere."""
    header = safetensors_header({"a@0": ("F32", (2, 2)), "b@0,4": ("U8", (3,))})
    assert len(header) % ALIGNMENT == 0
    path = tmp_path / "a.safetensors"
    path.write_bytes(header + torch.arange(4.0).numpy().tobytes() + bytes([7, 8, 9]))
    found = load_file(path)
    assert found["a@0"].tolist() == [[0, 1], [2, 3]] and found["b@0,4"].tolist() == [7, 8, 9]


def test_a_type_that_the_format_lacks_is_no_silent_change() -> None:
    with pytest.raises(KeyError, match="complex64"):
        dtype_code(torch.complex64)


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptError, match=r"a\.safetensors is cut"):
        TensorFile(str(path))
