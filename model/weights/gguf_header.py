"""The header of a GGUF file: its keys, and the names, shapes and types of its tensors. Local files only; no torch."""

from __future__ import annotations

import re
from functools import cached_property

from launchyard.model.config import ModelConfig
from launchyard.model.weights.gguf_format import GgufFile, read_gguf
from launchyard.model.zoo import gguf_family, read_keys
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.gguf_keys import hf_keys
from launchyard.storage.errors import CorruptError

TABLE = "token_embd.weight"
HEAD = "output.weight"
_PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")


class GgufHeader:
    """Of a file, or of all parts of one that was split, by any of their names.

    CorruptError names a damaged file, or a part that is missing; ValueError one that is remote.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if "://" in path:
            raise ValueError(f"{path}: GGUF files are read from this machine's disks only; copy it here first")
        files = [_open(part) for part in part_paths(path)]
        self._first = files[0]
        self.tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}

    @cached_property
    def metadata(self) -> dict[str, object]:
        """Key -> value: numbers, strings and lists of them; numbers of fp32 as their shortest decimals."""
        return {key: _plain_value(value) for key, value in self._first.metadata.items()}

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def kind(self, name: str) -> str:
        """The element type, by ggml's name of it."""
        return str(self.tensors[name].tensor_type.name)

    def numbers(self, name: str) -> list[float]:
        """Of a small tensor of fp32, as their shortest decimals."""
        return [_plain_number(value) for value in self.tensors[name].data.tolist()]

    def same(self, name: str, other: str) -> bool:
        """Do both have the same type, shape and bytes? All rows are compared only where the first ones are equal."""
        if self.kind(name) != self.kind(other) or self.shape(name) != self.shape(other):
            return False
        rows = self.tensors[name].data
        other_rows = self.tensors[other].data
        return bool((rows[:64] == other_rows[:64]).all()) and bool((rows == other_rows).all())

    @property
    def facts(self) -> Gguf:
        """How files of this architecture lie; ValueError if we do not have it."""
        found = gguf_family(self.metadata.get("general.architecture"), self.metadata).gguf
        assert found is not None
        return found


def part_paths(path: str) -> list[str]:
    """The file, or all parts of the one that this is a part of, first to last."""
    found = _PART.fullmatch(path)
    if found is None:
        return [path]
    return [f"{found[1]}-{number + 1:05d}-of-{found[2]}.gguf" for number in range(int(found[2]))]


def _needed_names(header: GgufHeader) -> list[str]:
    """The tensors, without a head that is the table once more: both are one."""
    copied = HEAD in header.tensors and header.same(TABLE, HEAD)
    return [name for name in header.names() if not (copied and name == HEAD)]


def gguf_config(header: GgufHeader) -> ModelConfig:
    """ValueError if we do not have that kind of model, or for a size that is missing or not supported."""
    try:
        family = gguf_family(header.metadata.get("general.architecture"), header.metadata)
        keys = hf_keys(header.metadata, header.facts, frozenset(_needed_names(header)), header.numbers)
        return read_keys(family, keys)
    except ValueError as error:
        raise ValueError(f"{header.path}: {str(error).removeprefix('config.json: ')}") from error


def gguf_companions(path: str) -> dict[str, bytes]:
    """The tokenizer, templates and rules of generation that are keys of a file, as files of a folder."""
    from launchyard.model.text.from_gguf import companions_of_gguf

    return companions_of_gguf(GgufHeader(path).metadata)


def _open(path: str) -> GgufFile:
    try:
        return read_gguf(path)
    except FileNotFoundError as error:
        raise CorruptError(f"{path} is missing; the other parts of its model need it") from error


def _plain_value(value: object) -> object:
    return _plain_number(value) if isinstance(value, float) else value


def _plain_number(value: float) -> float:
    import numpy

    return float(str(numpy.float32(value)))
