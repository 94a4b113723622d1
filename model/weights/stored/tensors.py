"""The tensors of a Hugging Face folder, by their names: where they lie, and parts of them on request.

safetensors files, local or in a store; else .bin files without code, local ones only. Knows no family.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from launchyard.model.layout import TensorShape
from launchyard.model.weights.headers import BIN_INDEX, BIN_SINGLE, INDEX, SINGLE, open_headers
from launchyard.model.weights.source import HF_CONFIG
from launchyard.model.weights.stored.pickled import open_bins, release_mapped
from launchyard.model.zoo.views import View
from launchyard.storage import files
from launchyard.storage.files import listdir
from launchyard.storage.safetensors import GAP_BYTES, TensorFile, torch_dtype


class StoredTensor(Protocol):
    """A tensor in a file, or in several of which it is made."""

    @property
    def path(self) -> str: ...

    @property
    def shape(self) -> TensorShape: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self, views: Sequence[View]) -> Tensor:
        """A tensor of the whole shape, of which the elements in `views` are valid. It may be a mapped file."""

    def release(self) -> None:
        """Gives back the memory of what was mapped; it is read again if it is used again."""


@dataclass(frozen=True)
class FileTensor:
    """One of a safetensors file."""

    file: TensorFile
    name: str

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def shape(self) -> TensorShape:
        return self.file.entries[self.name].shape

    @property
    def dtype(self) -> torch.dtype:
        return torch_dtype(self.file.entries[self.name].dtype)

    def read(self, views: Sequence[View]) -> Tensor:
        if not files.is_remote(self.path):
            return self.file.get(self.name)
        gap = GAP_BYTES // self.dtype.itemsize
        return self.file.get_parts(self.name, (part for view in views for part in view.stretches(gap)))

    def release(self) -> None:
        self.file.release(self.name)


@dataclass(frozen=True)
class BinTensor:
    """One of a .bin file, mapped."""

    path: str
    tensor: Tensor

    @property
    def shape(self) -> TensorShape:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def read(self, views: Sequence[View]) -> Tensor:
        return self.tensor.contiguous()

    def release(self) -> None:
        release_mapped(self.tensor)


def open_stored(folder: str) -> dict[str, StoredTensor]:
    """Every tensor of a folder by its name; safetensors if there are any.

    FileNotFoundError if there are no weights; ValueError or CorruptError names a file and its fault.
    """
    if headers := open_headers(folder):
        return {name: FileTensor(file, name) for name, file in headers.items()}
    if bins := open_bins(folder):
        return {name: BinTensor(path, tensor) for name, (path, tensor) in bins.items()}
    raise FileNotFoundError(
        f"{folder} has a {HF_CONFIG} but no weights: looked for {SINGLE}, {INDEX}, {BIN_SINGLE} and {BIN_INDEX}"
        + _found_instead(listdir(folder))
    )


def _found_instead(names: Iterable[str]) -> str:
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5"))]
    return f"; there is {', '.join(weights[:3])}, which no index names" if weights else ""
