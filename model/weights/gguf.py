"""Weights and facts of a GGUF file: read whole or quantised, by the rules of its family. Local files only."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy
import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameter_shapes
from launchyard.model.weights.transfer import to_ours
from launchyard.model.zoo import config_from_hf, gguf_family
from launchyard.model.zoo.gguf import Gguf, gguf_rules
from launchyard.model.zoo.gguf_keys import STRETCH_TENSORS, hf_keys
from launchyard.model.zoo.rules import Overlap, check_keys, overlaps, their_shapes
from launchyard.storage.errors import CorruptError

TABLE = "token_embd.weight"
HEAD = "output.weight"
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


class GgufFile:
    """The header of a file; tensors on request. CorruptError names a damaged file, ValueError one that is remote."""

    def __init__(self, path: str) -> None:
        from gguf import GGUFReader

        self.path = path
        if "://" in path:
            raise ValueError(f"{path}: GGUF files are read from this machine's disks only; copy it here first")
        try:
            self._reader = GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            raise CorruptError(f"{path} is no GGUF file, or it is cut or damaged: {error}") from error
        size = os.path.getsize(path)
        for name, tensor in self._tensors.items():
            if tensor.data_offset + tensor.n_bytes > size:
                raise CorruptError(f"{path} is cut: it has {size} bytes, {name} ends after them")

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Key -> value: numbers, strings and lists of them; numbers of fp32 as their shortest decimals."""
        return {key: _plain_value(field.contents()) for key, field in self._reader.fields.items()}

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def kind(self, name: str) -> str:
        """The element type, by ggml's name of it."""
        return str(self._tensors[name].tensor_type.name)

    def same(self, name: str, other: str) -> bool:
        """Do both have the same type, shape and bytes? All rows are compared only where the first ones are equal."""
        if self.kind(name) != self.kind(other) or self.shape(name) != self.shape(other):
            return False
        rows = self._tensors[name].data
        other_rows = self._tensors[other].data
        return bool((rows[:64] == other_rows[:64]).all()) and bool((rows == other_rows).all())

    def numbers(self, name: str) -> list[float]:
        """A small tensor's, those of fp32 as their shortest decimals."""
        return [_plain_number(value) for value in self.get(name).tolist()]

    def get(self, name: str) -> Tensor:
        """A whole tensor: as it is stored, a quantised one in fp32."""
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        plain = _PLAIN.get(self.kind(name))
        if plain is not None:
            raw = torch.from_numpy(numpy.array(tensor.data).reshape(-1).view(numpy.uint8))
            return raw.view(plain).view(self.shape(name))
        try:
            whole = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(f"{self.path}: {name} is {self.kind(name)}, which is not supported") from error
        return torch.from_numpy(whole).view(self.shape(name))


class GGUFWeights:
    """The weights of a file, by our names. Nothing is read before it is asked for.

    ValueError if the tensors are not those of the file's own sizes; CorruptError names a damaged file.
    """

    def __init__(self, path: str) -> None:
        self.file = GgufFile(path)
        self.config = read_gguf_config(self.file)
        facts = _facts(self.file)
        names = frozenset(self.file.names())
        rules = gguf_rules(self.config, facts, names)
        self._shapes = parameter_shapes(self.config)
        self._overlaps: dict[str, list[Overlap]] = {}
        for overlap in overlaps(rules, self.config):
            self._overlaps.setdefault(overlap.ours, []).append(overlap)
        check_keys(
            rules,
            self.config,
            names.difference(STRETCH_TENSORS),
            where=path,
            hint="Are its keys those of another model?",
        )
        self._their_shapes = their_shapes(rules, self.config)
        for key, shape in self._their_shapes.items():
            if plain_shape(self.file.shape(key)) != plain_shape(shape):
                found = list(self.file.shape(key))
                raise ValueError(f"{path}: {key} has shape {found}; the sizes of the file make it {list(shape)}")

    def keys(self) -> list[str]:
        return list(self._shapes)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def dtype(self, key: str) -> torch.dtype:
        """Of what `get` returns. Reads no tensor."""
        return _PLAIN.get(self.file.kind(self._overlaps[key][0].theirs), torch.float32)

    def get(self, key: str) -> Tensor:
        """A whole tensor on the CPU: as it is stored, a quantised one in fp32."""
        return to_ours(self._overlaps[key], self._shapes[key], self._whole)

    def _whole(self, key: str) -> Tensor:
        return self.file.get(key).view(self._their_shapes[key])


def plain_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without first axes of 1, as llama.cpp's files have it."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _facts(file: GgufFile) -> Gguf:
    facts = gguf_family(file.metadata.get("general.architecture"), file.metadata).gguf
    assert facts is not None
    return facts


def _needed_names(file: GgufFile) -> list[str]:
    """The tensors, without a head that is the table once more: both are one."""
    copied = HEAD in file.names() and file.same(TABLE, HEAD)
    return [name for name in file.names() if not (copied and name == HEAD)]


def read_gguf_config(file: GgufFile) -> ModelConfig:
    """ValueError if we do not have that kind of model, or for a size that is missing or not supported."""
    try:
        family = gguf_family(file.metadata.get("general.architecture"), file.metadata)
        keys = hf_keys(file.metadata, _facts(file), frozenset(_needed_names(file)), file.numbers)
        return config_from_hf({"model_type": family.model_type, **keys})
    except ValueError as error:
        raise ValueError(f"{file.path}: {str(error).removeprefix('config.json: ')}") from error


def _plain_value(value: object) -> object:
    return _plain_number(value) if isinstance(value, float) else value


def _plain_number(value: float) -> float:
    return float(str(numpy.float32(value)))
