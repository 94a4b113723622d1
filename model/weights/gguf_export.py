"""Writes weights as one GGUF file, which llama.cpp and its kin run; by the rules that gguf.py reads by.

The header is planned before any tensor is read: it holds the names, types and places of all of them.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.layout import TensorShape
from launchyard.model.text.to_gguf import GgufValue
from launchyard.model.weights.load import OnProgress, Weights
from launchyard.model.weights.theirs import TheirTensors
from launchyard.model.zoo import check_gguf
from launchyard.model.zoo.gguf import Gguf, gguf_rules, plain_shape
from launchyard.model.zoo.gguf_keys import gguf_keys, stretch_tensors
from launchyard.storage import files

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

# What a file can be of, and llama.cpp's number of it. K quants and below are made by its own llama-quantize.
FILE_TYPES: Mapping[str, int] = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q5_1": 9, "Q5_0": 8, "Q4_1": 3, "Q4_0": 2,
}  # fmt: skip
_OF_TORCH = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_ALIGNMENT = 32
# Matrices that llama.cpp keeps in fp32, as it does all vectors.
_ALWAYS_FP32 = ("norm.weight", "ffn_gate_inp.weight", "position_embd.weight")


def save_gguf(
    weights: Weights,
    config: ModelConfig,
    path: str,
    *,
    dtype: str | None = None,
    more_keys: Mapping[str, object] | None = None,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Write a file, local or any fsspec URL; it has its name only when it is whole. Returns what is worth saying.

    Holds one tensor in memory. dtype: one of FILE_TYPES, by default that of the table of embeddings. more_keys: those
    of the tokenizer and `general.name`, with numbers, strings or lists of them. ValueError if llama.cpp has no such
    model, or if the weights are not those of the config.
    """
    facts = check_gguf(config)
    dtype = dtype or _OF_TORCH.get(weights.dtype("embed.weight"), "F32")
    if dtype not in FILE_TYPES:
        raise ValueError(f"{dtype} is no type of a GGUF file to be written; there are {', '.join(FILE_TYPES)}")
    tensors = _Tensors(weights, config, facts, dtype)
    keys = {
        "general.architecture": facts.arch,
        "general.file_type": FILE_TYPES[dtype],
        "general.quantization_version": 2,
        **gguf_keys(config, facts),
        **(more_keys or {}),
    }
    header = _header(facts.arch, keys, tensors)
    _write(path, header, tensors, on_progress)
    return [*tensors.notes(), *_window_note(config, facts)]


class _Tensors:
    """The tensors of a file in its order: their types and sizes first, then their bytes, one after the other."""

    def __init__(self, weights: Weights, config: ModelConfig, facts: Gguf, dtype: str) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        self._theirs = TheirTensors(weights, config, gguf_rules(config, facts), dtype=torch.float32)
        self._small = {name: torch.tensor(values) for name, values in stretch_tensors(config).items()}
        self._wanted = GGMLQuantizationType[dtype]
        self._block = GGML_QUANT_SIZES[self._wanted][0]
        stretches = {name: tuple(values.shape) for name, values in self._small.items()}
        self.shapes = {key: plain_shape(shape) for key, shape in {**self._theirs.shapes, **stretches}.items()}
        self._indivisible: list[str] = []
        self.types = {key: self._type(key, shape) for key, shape in self.shapes.items()}

    def n_bytes(self, key: str) -> int:
        from gguf import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[self.types[key]]
        return math.prod(self.shapes[key]) // block * size

    def raw(self, key: str) -> memoryview:
        """The bytes of a tensor, once. ValueError if a number of it is beyond its type."""
        from gguf.quants import quantize

        tensor = self._small[key] if key in self._small else self._theirs.get(key)
        kind = self.types[key].name
        if kind == "F16" and tensor.abs().max() > torch.finfo(torch.float16).max:
            raise ValueError(f"{key} has numbers beyond the range of F16; write BF16 or F32")
        if kind == "BF16":
            return _bytes_of(tensor.bfloat16())
        return _bytes_of(torch.from_numpy(quantize(tensor.view(self.shapes[key]).numpy(), self.types[key])))

    def notes(self) -> Iterator[str]:
        if self._indivisible:
            yield (
                f"{len(self._indivisible)} tensors are F16, not {self._wanted.name}, whose blocks of {self._block} "
                f"their rows are no multiple of: {', '.join(self._indivisible[:3])}"
            )

    def _type(self, key: str, shape: TensorShape) -> GGMLQuantizationType:
        from gguf import GGMLQuantizationType

        if len(shape) == 1 or key.endswith(_ALWAYS_FP32):
            return GGMLQuantizationType.F32
        if shape[-1] % self._block:
            self._indivisible.append(key)
            return GGMLQuantizationType.F16
        return self._wanted


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B")


def _header(arch: str, keys: Mapping[str, object], tensors: _Tensors) -> bytes:
    """Everything before the first tensor, padded."""
    import numpy
    from gguf import GGUFWriter

    writer = GGUFWriter(None, arch)
    for key, value in keys.items():
        _add(writer, key, value)
    for name, shape in tensors.shapes.items():
        writer.add_tensor_info(name, shape, numpy.dtype(numpy.float32), tensors.n_bytes(name), tensors.types[name])
    with tempfile.TemporaryDirectory() as folder:
        writer.write_header_to_file(Path(folder) / "header")
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        raw = (Path(folder) / "header").read_bytes()
    return raw + bytes(-len(raw) % _ALIGNMENT)


def _add(writer: GGUFWriter, key: str, value: object) -> None:
    """Whole numbers are UINT32, as readers want them, and INT32 in a list; the others FLOAT32."""
    from gguf import GGUFValueType

    if key == "general.architecture":
        return  # the writer has added it
    kinds = {
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
    }
    if isinstance(value, GgufValue):
        kind = GGUFValueType[value.kind.rpartition(" ")[2]]
        is_list = isinstance(value.value, list)
        writer.add_key_value(key, value.value, GGUFValueType.ARRAY if is_list else kind, kind if is_list else None)
    elif isinstance(value, list):
        in_list = {**kinds, int: GGUFValueType.INT32}
        writer.add_key_value(key, value, GGUFValueType.ARRAY, in_list.get(type(value[0])) if value else kinds[str])
    else:
        writer.add_key_value(key, value, kinds[type(value)])


def _write(path: str, header: bytes, tensors: _Tensors, on_progress: OnProgress | None) -> None:
    """Under a name of its own until it is whole; a store shows a file only then anyway."""
    sizes = {key: tensors.n_bytes(key) for key in tensors.shapes}
    padded = sum(size + -size % _ALIGNMENT for size in sizes.values())
    unfinished = path if files.is_remote(path) else f"{path}.part"
    file = files.open_write(unfinished, size=len(header) + padded)
    try:
        file.write(header)
        done = 0
        for key, size in sizes.items():
            raw = tensors.raw(key)
            assert len(raw) == size, f"{key} has {len(raw)} bytes, not {size}"
            file.write(raw)
            file.write(bytes(-size % _ALIGNMENT))
            done += size
            if on_progress is not None:
                on_progress(done, sum(sizes.values()))
        file.close()
    except BaseException:
        file.discard()
        raise
    if unfinished != path:
        files.rename(unfinished, path)


def _window_note(config: ModelConfig, facts: Gguf) -> Iterator[str]:
    if "window" in config.layers and not facts.reads_window:
        yield (
            f"llama.cpp's {facts.arch} models see everything: past {config.window} tokens, the window of this one, its "
            "results differ"
        )
