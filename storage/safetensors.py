"""One safetensors file, local or behind a URL: header, lazily mapped tensors, writing. Knows no model.

The format: 8 bytes with the length of a JSON header, the header, the data (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from launchyard.storage import files, options
from launchyard.storage.errors import CorruptError
from launchyard.storage.shards import DTYPE_BYTES, TORCH_DTYPES

DTYPE_NAMES = {getattr(torch, name): code for code, name in TORCH_DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000
# The data begin at a multiple of a cache line: generation from a mapped file is several percent faster for it.
ALIGNMENT = 64


@dataclass(frozen=True)
class Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int  # first byte in the file
    length: int  # bytes


class TensorFile:
    """Reads the header at once and the tensors when they are asked for. CorruptError names a file that is damaged."""

    def __init__(self, path: str) -> None:
        self.path = path
        size = files.size(path)
        raw = files.read(path, 0, 8)
        header_bytes = int.from_bytes(raw, "little")
        if len(raw) < 8 or header_bytes > min(MAX_HEADER_BYTES, size - 8):
            raise CorruptError(f"{path} is no safetensors file, or it is cut: it has {size} bytes")
        try:
            header = json.loads(files.read(path, 8, header_bytes))
            self.entries = {
                name: _entry(facts, 8 + header_bytes) for name, facts in header.items() if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError(f"{path}: the header is damaged: {error}") from error
        end = max((entry.start + entry.length for entry in self.entries.values()), default=0)
        if end > size:
            raise CorruptError(f"{path} is cut: it has {size} bytes, its tensors end at byte {end}")
        self._map: mmap.mmap | None = None

    def get(self, name: str) -> Tensor:
        """A tensor on the CPU. Local: a view of the mapped file, so that nothing is read before it is used."""
        entry = self.entries[name]
        dtype = getattr(torch, TORCH_DTYPES[entry.dtype])
        if not entry.length:
            return torch.empty(entry.shape, dtype=dtype)
        if files.is_remote(self.path):
            raw = bytearray(entry.length)
            if files.read_into(self.path, entry.start, memoryview(raw)) != entry.length:
                raise CorruptError(f"{self.path} is cut: {name} ends at byte {entry.start + entry.length}")
            return torch.frombuffer(raw, dtype=dtype).view(entry.shape)
        count = math.prod(entry.shape)
        return torch.frombuffer(self._mapped(), dtype=dtype, count=count, offset=entry.start).view(entry.shape)

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            with open(self.path, "rb") as file:  # copy on write: a tensor may be changed, the file never is
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._map


def write_tensors(file: IO[bytes] | options.Writer, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file of CPU tensors, the widest numbers first so that all of them lie aligned."""
    ordered = sorted(tensors, key=lambda name: -tensors[name].element_size())
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in ordered:
        tensor = tensors[name]
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in ordered:
        if tensors[name].numel():
            file.write(memoryview(tensors[name].contiguous().view(-1).view(torch.uint8).numpy()))


def _entry(facts: Mapping[str, Any], data_start: int) -> Entry:
    dtype, shape = str(facts["dtype"]), tuple(int(size) for size in facts["shape"])
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"element type {dtype} is not supported; supported are {', '.join(DTYPE_BYTES)}")
    first, last = facts["data_offsets"]
    if first < 0 or min(shape, default=0) < 0 or last - first != DTYPE_BYTES[dtype] * math.prod(shape):
        raise ValueError(f"shape {list(shape)} of {dtype} does not take the bytes {first} to {last}")
    return Entry(dtype, shape, data_start + first, last - first)
