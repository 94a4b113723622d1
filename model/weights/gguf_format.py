"""Reads the header of a GGUF file: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. No torch.

gguf's own reader makes an array of every token of a vocabulary, which takes seconds.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from typing import TYPE_CHECKING

from launchyard.storage.errors import CorruptError, pointer_fault

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType
    from numpy import generic
    from numpy.typing import NDArray

GgufScalar = bool | int | float | str
GgufData = GgufScalar | list[GgufScalar]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING = 8
_ARRAY = 9
_ALIGNMENT = "general.alignment"
_TYPED = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_MAX_AXES = 8


@dataclass(frozen=True)
class GgufEntry:
    """One tensor of a file: `shape` slowest axis first; `offset` and `n_bytes` of its bytes in the file."""

    path: str
    name: str
    shape: tuple[int, ...]
    tensor_type: GGMLQuantizationType
    offset: int
    n_bytes: int

    @property
    def data(self) -> NDArray[generic]:
        """Its numbers, or of a packed type the bytes of each row; a view of the mapped file."""
        import numpy

        raw = numpy.memmap(self.path, mode="r", offset=self.offset, shape=(self.n_bytes,), dtype=numpy.uint8)
        typed = _TYPED.get(self.tensor_type.name)
        if typed is not None:
            return raw.view(typed).reshape(self.shape)
        return raw.reshape(*self.shape[:-1], -1)


@dataclass(frozen=True)
class GgufFile:
    metadata: dict[str, GgufData]
    tensors: dict[str, GgufEntry]


def read_gguf(path: str) -> GgufFile:
    """Keys and tensors of one file. CorruptError if it is none, or cut; FileNotFoundError; ValueError for a version."""
    with open(path, "rb") as file:
        try:
            mapped = mmap(file.fileno(), 0, access=ACCESS_READ)
        except ValueError as error:
            raise CorruptError(f"{path} is no GGUF file: it is empty") from error
        with mapped:
            try:
                return _Reader(path, mapped).file()
            except (struct.error, UnicodeDecodeError, KeyError, OverflowError) as error:
                raise CorruptError(f"{path} is no GGUF file, or it is cut or damaged: {error}") from error


class _Reader:
    def __init__(self, path: str, mapped: mmap) -> None:
        self._path = path
        self._mapped = mapped
        self._size = len(mapped)
        self._at = 0

    def file(self) -> GgufFile:
        if fault := pointer_fault(self._path, self._mapped[:64]):
            raise CorruptError(fault)
        if self._mapped[:4] != _MAGIC:
            raise CorruptError(f"{self._path} is no GGUF file: it does not begin with {_MAGIC.decode()}")
        self._at = 4
        version = self._number("I")
        if version not in _VERSIONS:
            whose = "one of a big-endian machine" if version & 0xFFFF == 0 else f"of version {version}"
            raise ValueError(f"{self._path} is {whose}; GGUF files of versions 2 and 3, little-endian, are read")
        n_tensors = self._number("Q")
        n_keys = self._number("Q")
        metadata = {self._text(): self._value(self._number("I")) for _ in range(n_keys)}
        heads = [self._tensor_head() for _ in range(n_tensors)]
        alignment = metadata.get(_ALIGNMENT, 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise CorruptError(f"{self._path} is damaged: {_ALIGNMENT} is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        return GgufFile(metadata, {name: self._placed(name, *head, start=start) for name, head in heads})

    def _tensor_head(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        name = self._text()
        n_axes = self._number("I")
        if n_axes > _MAX_AXES:
            raise CorruptError(f"{self._path} is damaged: {name} has {n_axes} axes")
        shape = tuple(reversed([self._number("Q") for _ in range(n_axes)]))
        return name, (shape, self._number("I"), self._number("Q"))

    def _placed(self, name: str, shape: tuple[int, ...], kind: int, offset: int, *, start: int) -> GgufEntry:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            tensor_type = GGMLQuantizationType(kind)
            block, block_bytes = GGML_QUANT_SIZES[tensor_type]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{self._path}: {name} has element type {kind}, which is not known here") from error
        if shape and shape[-1] % block:
            raise CorruptError(
                f"{self._path} is damaged: rows of {name} have {shape[-1]} elements, not blocks of {block}"
            )
        n_bytes = math.prod(shape) // block * block_bytes
        if start + offset + n_bytes > self._size:
            raise CorruptError(f"{self._path} is cut: it has {self._size} bytes, {name} ends after them")
        return GgufEntry(self._path, name, shape, tensor_type, start + offset, n_bytes)

    def _number(self, code: str) -> int:
        (value,) = self._numbers(code, 1)
        assert isinstance(value, int)
        return value

    def _numbers(self, code: str, count: int) -> tuple[GgufScalar, ...]:
        n_bytes = count * struct.calcsize(f"<{code}")
        self._check(n_bytes)
        found = struct.unpack_from(f"<{count}{code}", self._mapped, self._at)
        self._at += n_bytes
        return found

    def _text(self) -> str:
        length = self._number("Q")
        self._check(length)
        self._at += length
        return self._mapped[self._at - length : self._at].decode()

    def _value(self, kind: int) -> GgufData:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._numbers(_NUMBERS[kind], 1)[0]
        of = self._number("I")
        count = self._number("Q")
        self._check(count)  # of elements of a byte at least
        return [self._text() for _ in range(count)] if of == _STRING else [*self._numbers(_NUMBERS[of], count)]

    def _check(self, n_bytes: int) -> None:
        if self._at + n_bytes > self._size:
            raise CorruptError(f"{self._path} is cut or damaged: its header ends after its {self._size} bytes")
