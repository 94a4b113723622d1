"""Weights of a GGUF file: read whole or quantised, by the rules of its family. Local files only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from launchyard.model.layout import TensorShape, parameter_shapes
from launchyard.model.weights.gguf_header import GgufHeader, gguf_config
from launchyard.model.weights.transfer import ImportedWeights, Importer, first_axis
from launchyard.model.zoo.gguf import gguf_rules, plain_shape
from launchyard.model.zoo.gguf_keys import STRETCH_TENSORS
from launchyard.model.zoo.rules import check_keys, overlaps, their_shapes
from launchyard.model.zoo.views import View

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


@dataclass(frozen=True)
class GgufTensor:
    """One of a file: as it is stored, a quantised one in fp32. `shape`: as the rules have it."""

    file: GgufHeader
    name: str
    shape: TensorShape

    @property
    def dtype(self) -> torch.dtype:
        return _PLAIN.get(self.file.kind(self.name), torch.float32)

    def read(self, views: Sequence[View]) -> Tensor:
        """A tensor of the whole shape, of which the rows that hold `views` are valid."""
        first, last = first_axis(views, self.shape)
        made = torch.empty(self.shape, dtype=self.dtype)  # memory is taken for the rows that are written
        if len(self.shape) > 1:
            packed = self.file.tensors[self.name].data.reshape(self.shape[0], -1)[first:last]
            made[first:last] = self._values(packed).view(last - first, *self.shape[1:])
        else:
            made.copy_(self._values(self.file.tensors[self.name].data))
        return made

    def _values(self, packed: numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.generic]]) -> Tensor:
        from gguf.quants import dequantize

        kind = self.file.kind(self.name)
        if kind in _PLAIN:
            return torch.from_numpy(numpy.array(packed).reshape(-1).view(numpy.uint8)).view(_PLAIN[kind])
        try:
            return torch.from_numpy(dequantize(packed, self.file.tensors[self.name].tensor_type)).view(-1)
        except NotImplementedError as error:
            raise ValueError(f"{self.file.path}: {self.name} is {kind}, which is not supported") from error

    def release(self) -> None:
        """Of a file of one map for all, which the system takes back by itself."""


class GGUFWeights(ImportedWeights):
    """The weights of a file: `get` gives them as they are stored, quantised ones in fp32.

    ValueError if the tensors are not those of the file's own sizes; CorruptError names a damaged file.
    """

    def __init__(self, path: str) -> None:
        self.file = GgufHeader(path)
        self.config = gguf_config(self.file)
        names = frozenset(self.file.names())
        rules = gguf_rules(self.config, self.file.facts, names)
        present = names.difference(STRETCH_TENSORS)
        check_keys(rules, self.config, present, where=path, hint="Are its keys those of another model?")
        shapes = their_shapes(rules, self.config)
        for key, shape in shapes.items():
            if plain_shape(self.file.shape(key)) != plain_shape(shape):
                found = list(self.file.shape(key))
                raise ValueError(f"{path}: {key} has shape {found}; the sizes of the file make it {list(shape)}")
        stored = {key: GgufTensor(self.file, key, shape) for key, shape in shapes.items()}
        super().__init__(Importer(overlaps(rules, self.config), parameter_shapes(self.config), stored))
