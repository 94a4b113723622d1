"""Weights and facts of a GGUF file: read whole or quantised, by the rules of its family. Local files only."""

from __future__ import annotations

import math
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
from launchyard.model.zoo.gguf import gguf_rules, hf_keys
from launchyard.model.zoo.rules import Overlap, check_keys, overlaps, their_shapes
from launchyard.storage.errors import CorruptError

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
FREQUENCY_FACTORS = "rope_freqs.weight"  # llama3's stretch, pair by pair


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
        family = gguf_family(self.file.metadata["general.architecture"], self.file.metadata)
        assert family.gguf is not None
        rules = gguf_rules(self.config, family.gguf)
        self._shapes = parameter_shapes(self.config)
        self._overlaps: dict[str, list[Overlap]] = {}
        for overlap in overlaps(rules, self.config):
            self._overlaps.setdefault(overlap.ours, []).append(overlap)
        present = [name for name in self.file.names() if name != FREQUENCY_FACTORS]
        check_keys(rules, self.config, present, where=path)
        for key, shape in their_shapes(rules, self.config).items():
            if self.file.shape(key) != shape:
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
        return to_ours(self._overlaps[key], self._shapes[key], self.file.get)


def read_gguf_config(file: GgufFile) -> ModelConfig:
    """ValueError if we do not have that kind of model, or for a size that is missing or not supported."""
    metadata = file.metadata
    arch = metadata.get("general.architecture")
    try:
        family = gguf_family(arch, metadata)
        assert family.gguf is not None
        keys = hf_keys(metadata, family.gguf, tied="output.weight" not in file.names())
        if FREQUENCY_FACTORS in file.names() and "rope_scaling" not in keys:
            keys["rope_scaling"] = _llama3_scaling(file.get(FREQUENCY_FACTORS).tolist(), keys)
        return config_from_hf({"model_type": family.model_type, **keys})
    except ValueError as error:
        raise ValueError(f"{file.path}: {str(error).removeprefix('config.json: ')}") from error


def _llama3_scaling(factors: list[float], keys: dict[str, Any]) -> dict[str, Any] | None:
    """The stretch behind the divisors of the frequencies, which are all that a file has of it."""
    if max(factors) <= 1:
        return None
    guess = {"factor": round(max(factors), 4), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    original = 8192  # of every release
    for number, factor in enumerate(factors):
        wavelength = 2 * math.pi * keys["rope_theta"] ** (number / len(factors))
        keep = min(1.0, max(0.0, (original / wavelength - 1.0) / 3.0))
        if abs(1 / (keep + (1 - keep) / guess["factor"]) - factor) > 1e-3 * factor:
            raise ValueError(f"{FREQUENCY_FACTORS} are not those of Llama 3's stretch, which alone is supported")
    return {"rope_type": "llama3", "original_max_position_embeddings": original, **guess}


def _plain_value(value: object) -> object:
    if isinstance(value, float):
        return float(str(numpy.float32(value)))
    return value
