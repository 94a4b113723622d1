"""Tensors of quantised folders by their values: FP8 with scales, and MXFP4, as a folder of plain weights has them.

What config.json says of the format decides; see model/zoo/unsupported.py for those that are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from launchyard.model.layout import TensorShape
from launchyard.model.weights.stored.tensors import StoredTensor
from launchyard.model.weights.transfer import first_axis
from launchyard.model.zoo.hf_config import HFKeys
from launchyard.model.zoo.views import View, whole

_SCALES = ("weight_scale_inv", "weight_scale")  # two names of one thing: what the stored weight is multiplied by
_OF_ACTIVATIONS = (".input_scale", ".activation_scale", ".input_scale_ub", ".k_scale", ".v_scale")
_PACKED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
# The values of 4 bits: a sign, two bits of exponent, one of mantissa (OCP Microscaling Formats, 5.3.3).
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def dequantise(stored: Mapping[str, StoredTensor], facts: HFKeys, dtype: torch.dtype) -> dict[str, StoredTensor]:
    """The same tensors, with one of plain numbers where there were a packed one and its scales.

    facts: quantization_config. ValueError names a tensor whose scales are missing or do not fit.
    """
    blocks = facts.get("weight_block_size") or _group_block(facts)
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        stem, _, last = name.rpartition(".")
        if last in _SCALES or name.endswith(("_scales", *_OF_ACTIVATIONS)):
            continue
        if name.endswith("_blocks"):
            plain = name.removesuffix("_blocks")
            found[plain] = Mxfp4Tensor(tensor, _scales(stored, [f"{plain}_scales"], tensor, name), dtype)
        elif tensor.dtype in _PACKED:
            scales = _scales(stored, [f"{stem}.{scale}" for scale in _SCALES], tensor, name)
            found[name] = ScaledTensor(tensor, scales, _block_of(tensor, scales, blocks, name), dtype)
        else:
            found[name] = tensor
    return found


def _group_block(facts: HFKeys) -> Sequence[int] | None:
    """The size of blocks in the words of compressed-tensors."""
    groups = (facts.get("config_groups") or {}).values()
    return next((group["weights"].get("block_structure") for group in groups if group.get("weights")), None)


def _scales(stored: Mapping[str, StoredTensor], names: Sequence[str], tensor: StoredTensor, of: str) -> StoredTensor:
    for name in names:
        if name in stored:
            return stored[name]
    kind = str(tensor.dtype).removeprefix("torch.")
    raise ValueError(f"{tensor.path}: {of} is of {kind}, and there is no {' or '.join(names)} to its numbers")


def _block_of(tensor: StoredTensor, scales: StoredTensor, blocks: Sequence[int] | None, name: str) -> TensorShape:
    """Rows and columns that share a scale; ValueError if the scales are not as many as that makes."""
    shape = tensor.shape
    if math.prod(scales.shape) == 1:
        return shape
    if blocks:
        block = (*(1 for _ in shape[:-2]), *(int(size) for size in blocks))
    else:
        block = (*(1 for _ in shape[:-1]), shape[-1])
    expected = tuple(-(-size // edge) for size, edge in zip(shape, block, strict=True))
    if scales.shape not in (expected, expected[:-1] if expected[-1] == 1 else expected):
        raise ValueError(
            f"{tensor.path}: {name} of shape {list(shape)} has scales of shape {list(scales.shape)}; "
            f"blocks of {list(block)} make it {list(expected)}"
        )
    return block


@dataclass(frozen=True)
class ScaledTensor:
    """Numbers of 8 bits, which a scale for each block multiplies."""

    packed: StoredTensor
    scales: StoredTensor
    block: TensorShape
    dtype: torch.dtype

    @property
    def path(self) -> str:
        return self.packed.path

    @property
    def shape(self) -> TensorShape:
        return self.packed.shape

    def read(self, views: Sequence[View]) -> Tensor:
        made = torch.empty(self.shape, dtype=self.dtype)  # memory is taken for the rows that are written
        first, last = first_axis(views, self.shape)
        rows = whole(self.shape).cut(0, first, last - first)
        packed = self.packed.read([rows])[first:last]
        scales = self.scales.read([whole(self.scales.shape)]).float()
        if scales.numel() > 1:
            scales = scales.reshape(tuple(-(-size // edge) for size, edge in zip(self.shape, self.block, strict=True)))
            for axis, edge in enumerate(self.block):
                start, stop = (first, last) if axis == 0 else (0, self.shape[axis])
                places = torch.arange(start, stop) // edge
                scales = scales if edge >= self.shape[axis] and axis else scales.index_select(axis, places)
        torch.mul(packed.float(), scales, out=(product := torch.empty(packed.shape)))
        made[first:last] = product
        return made

    def release(self) -> None:
        self.packed.release()
        self.scales.release()


@dataclass(frozen=True)
class Mxfp4Tensor:
    """Numbers of 4 bits, two a byte, the lower four bits first; each 32 of them share a power of two.

    Stored as (experts, out, in / 32, 16), and given as plain weights of the family are: (experts, in, out).
    """

    packed: StoredTensor
    scales: StoredTensor
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if len(self.packed.shape) != 4 or self.packed.shape[:-1] != self.scales.shape:
            raise ValueError(
                f"{self.packed.path}: blocks of shape {list(self.packed.shape)} do not fit scales of shape "
                f"{list(self.scales.shape)}"
            )

    @property
    def path(self) -> str:
        return self.packed.path

    @property
    def shape(self) -> TensorShape:
        experts, rows, groups, width = self.packed.shape
        return experts, groups * width * 2, rows

    def read(self, views: Sequence[View]) -> Tensor:
        made = torch.empty(self.shape, dtype=self.dtype)
        first, last = first_axis(views, self.shape)
        packed = self.packed.read([whole(self.packed.shape).cut(0, first, last - first)])
        scales = self.scales.read([whole(self.scales.shape).cut(0, first, last - first)])
        values = torch.tensor(_FP4)
        for expert in range(first, last):
            halves = torch.stack([packed[expert] & 15, packed[expert] >> 4], dim=-1).flatten(-2)
            exponents = scales[expert].to(torch.int32)[..., None] - 127
            made[expert] = torch.ldexp(values[halves.int()], exponents).flatten(-2).T
        return made

    def release(self) -> None:
        self.packed.release()
        self.scales.release()
