"""The only reader and writer of the safetensors format; tensors of local files are mapped lazily. Knows no model.

The format: 8 bytes with the length of a JSON header, the header, the data (https://github.com/huggingface/safetensors).
Light: torch only where tensors are read or written.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from launchyard.storage import files, options
from launchyard.storage.errors import CorruptError, pointer_fault

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# safetensors' names of element types, with their size in bytes and torch's names.
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I64": 8, "I32": 4, "I16": 2,
    "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
TORCH_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_CODES = {f"torch.{name}": code for code, name in TORCH_DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000
# The data begin at a multiple of a cache line: generation from a mapped file is several percent faster for it.
ALIGNMENT = 64
# Of ranged reads from a store: what lies between two stretches is read too if it is shorter than a request is worth.
GAP_BYTES = 64 * 1024
REQUEST_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class TensorRange:
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    start: int  # first byte in the file
    length: int  # bytes


class TensorFile:
    """Reads the header at once, tensors on request. Raises CorruptError, which names a damaged file."""

    def __init__(self, path: str) -> None:
        self.path = path
        size = files.size(path)
        raw = files.read(path, 0, 8)
        header_bytes = int.from_bytes(raw, "little")
        if raw == b"version " and (fault := pointer_fault(path, files.read(path, 0, 64))):
            raise CorruptError(fault)
        if len(raw) < 8 or header_bytes > min(MAX_HEADER_BYTES, size - 8):
            raise CorruptError(f"{path} is no safetensors file, or it is cut: it has {size} bytes")
        try:
            header = json.loads(files.read(path, 8, header_bytes))
            self.entries = {
                name: _entry(name, facts, 8 + header_bytes) for name, facts in header.items() if name != "__metadata__"
            }
        except UnknownTypeError as error:
            raise ValueError(f"{path}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError(f"{path}: the header is damaged: {error}") from error
        end = max((entry.start + entry.length for entry in self.entries.values()), default=0)
        if end > size:
            raise CorruptError(f"{path} is cut: it has {size} bytes, its tensors end at byte {end}")
        self._map: mmap.mmap | None = None

    def get(self, name: str) -> Tensor:
        """Returns a tensor on the CPU. Local: a view of the mapped file, which reads nothing before it is used."""
        import torch

        entry = self.entries[name]
        dtype = torch_dtype(entry.dtype)
        if not entry.length:
            return torch.empty(entry.shape, dtype=dtype)
        count = math.prod(entry.shape)
        if files.is_remote(self.path):
            return self.get_parts(name, [(0, count)])
        return torch.frombuffer(self._mapped(), dtype=dtype, count=count, offset=entry.start).view(entry.shape)

    def get_parts(self, name: str, parts: Iterable[tuple[int, int]]) -> Tensor:
        """Returns a tensor of the whole shape, of which the elements in `parts` are read, and others may be anything.

        A part is the offset of its first element and their number. Memory is taken for what is read.
        """
        import torch

        if not files.is_remote(self.path):
            return self.get(name)
        entry = self.entries[name]
        whole = torch.empty(entry.shape, dtype=torch_dtype(entry.dtype))  # pages come when written
        raw = memoryview(whole.view(-1).view(torch.uint8).numpy())
        width = DTYPE_BYTES[entry.dtype]
        for first, last in _requests((offset * width, (offset + count) * width) for offset, count in parts):
            if files.read_into(self.path, entry.start + first, raw[first:last]) != last - first:
                raise CorruptError(f"{self.path} is cut: {name} ends at byte {entry.start + entry.length}")
        return whole

    def release(self, name: str) -> None:
        """Gives back the memory of a mapped tensor. It stays valid, and what was not changed is read again."""
        entry = self.entries[name]
        if self._map is None:
            return
        first = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE  # pages that it shares with others stay
        length = (entry.start + entry.length) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, length)

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            with open(self.path, "rb") as file:  # copy on write: a tensor may be changed, the file never is
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._map


def torch_dtype(code: str) -> torch.dtype:
    """Returns torch's element type of safetensors' name of it."""
    import torch

    found = getattr(torch, TORCH_DTYPES[code])
    assert isinstance(found, torch.dtype)
    return found


def dtype_code(dtype: object) -> str:
    """Returns safetensors' name of one of torch's element types. Raises KeyError if it has none."""
    return _CODES[str(dtype)]


def safetensors_header(
    entries: Mapping[str, tuple[str, tuple[int, ...]]], *, metadata: Mapping[str, str] | None = None
) -> bytes:
    """Returns the bytes before the data of a file with these tensors (name -> dtype, shape), in order, without gaps."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in entries.items():
        end = offset + DTYPE_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_tensors(
    file: IO[bytes] | options.Writer, entries: Mapping[str, tuple[str, tuple[int, ...]]], get: Callable[[str], Tensor]
) -> None:
    """Writes a safetensors file of tensors (name -> dtype, shape), each asked for when its turn has come.

    The widest numbers come first, so that all of them lie aligned. `get` gives a tensor on the CPU.
    """
    ordered = dict(sorted(entries.items(), key=lambda entry: -DTYPE_BYTES[entry[1][0]]))
    file.write(safetensors_header(ordered, metadata={"format": "pt"}))
    for name, entry in ordered.items():
        tensor = get(name)
        assert (dtype_code(tensor.dtype), tuple(tensor.shape)) == entry, f"{name} is not as its header says: {entry}"
        if tensor.numel():
            file.write(_bytes_of(tensor))
        del tensor  # before the next one is made


def _bytes_of(tensor: Tensor) -> memoryview:
    import torch

    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())


def _requests(stretches: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """First and last + 1 byte of each request that reads all of these, which may overlap, in any order."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(stretches):
        if merged and start <= merged[-1][1] + GAP_BYTES:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    for first, last in merged:
        for start in range(first, last, REQUEST_BYTES):
            yield start, min(last, start + REQUEST_BYTES)


class UnknownTypeError(ValueError):
    """The element type of a tensor is none that we know."""


def _entry(name: str, facts: Mapping[str, Any], data_start: int) -> TensorRange:
    dtype = str(facts["dtype"])
    shape = tuple(int(size) for size in facts["shape"])
    if dtype not in DTYPE_BYTES:
        raise UnknownTypeError(
            f"{name} is of the element type {dtype}, which is not supported; supported are {', '.join(DTYPE_BYTES)}"
        )
    first, last = facts["data_offsets"]
    if first < 0 or min(shape, default=0) < 0 or last - first != DTYPE_BYTES[dtype] * math.prod(shape):
        raise ValueError(f"{name}: shape {list(shape)} of {dtype} does not take the bytes {first} to {last}")
    return TensorRange(dtype, shape, data_start + first, last - first)
