"""Weights of a GGUF file: read whole or quantised, by the rules of its family. Local files only."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from launchyard.model.layout import parameter_shapes
from launchyard.model.weights.gguf_header import GgufHeader, gguf_config
from launchyard.model.weights.transfer import to_ours
from launchyard.model.zoo.gguf import gguf_rules, plain_shape
from launchyard.model.zoo.gguf_keys import STRETCH_TENSORS
from launchyard.model.zoo.rules import Overlap, check_keys, overlaps, their_shapes

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


class GGUFWeights:
    """The weights of a file, by our names. Nothing is read before it is asked for.

    ValueError if the tensors are not those of the file's own sizes; CorruptError names a damaged file.
    """

    def __init__(self, path: str) -> None:
        self.file = GgufHeader(path)
        self.config = gguf_config(self.file)
        names = frozenset(self.file.names())
        rules = gguf_rules(self.config, self.file.facts, names)
        self._shapes = parameter_shapes(self.config)
        self._overlaps: dict[str, list[Overlap]] = {}
        for overlap in overlaps(rules, self.config):
            self._overlaps.setdefault(overlap.ours, []).append(overlap)
        present = names.difference(STRETCH_TENSORS)
        check_keys(rules, self.config, present, where=path, hint="Are its keys those of another model?")
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
        return to_ours(self._overlaps[key], self._shapes[key], self._theirs)

    def _theirs(self, name: str) -> Tensor:
        from gguf.quants import dequantize

        tensor = self.file.tensors[name]
        shape = self._their_shapes[name]
        plain = _PLAIN.get(self.file.kind(name))
        if plain is not None:
            raw = torch.from_numpy(numpy.array(tensor.data).reshape(-1).view(numpy.uint8))
            return raw.view(plain).view(shape)
        try:
            whole = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(f"{self.file.path}: {name} is {self.file.kind(name)}, which is not supported") from error
        return torch.from_numpy(whole).view(shape)
