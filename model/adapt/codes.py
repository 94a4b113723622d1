"""Rows of a matrix as codes of 4 or 8 bits with scales, and back. Knows no module and no name.

All is stored as bytes: no mixed precision rounds the scales, and a cut by rows cuts both. The values of nf4 are those
of bitsandbytes, whose kernel is taken where it is installed.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from launchyard.model.adapt.forms import (
    NF4_BLOCK,
    SCALES_BLOCK,
    Form,
    n_blocks,
    n_groups,
    packed_bytes,
    scales_bytes,
)

_LOG = logging.getLogger(__name__)
# Quantiles of the normal distribution, scaled to [-1, 1], with an exact zero (Dettmers et al. 2023, appendix E).
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_INT8_MAX = 127
_FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0
_KERNEL_TYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
)  # of bitsandbytes: in fp64 it gives no numbers, in silence
# Numbers that are worked on at once: on a CPU as many as its cache holds, on a GPU enough to fill it.
_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 24}
_CELLS = 64  # so many, of equal width, lie on [-1, 1]; no two borders between codes of nf4 are in one


@dataclass(frozen=True)
class Coded:
    """Rows of a matrix. Leading axes are those of the plain rows."""

    codes: Tensor  # (…, packed_bytes) uint8
    scales: Tensor  # (…, scales_bytes) uint8


def encode(rows: Tensor, form: Form) -> Coded:
    """rows (…, columns) in any float type, coded on their device, each row alone.

    ValueError if a number is infinite or none.
    """
    if not torch.isfinite(rows).all():
        raise ValueError(f"a weight that is infinite or no number has no {form}; take a base without")
    *lead, columns = rows.shape
    codes = torch.empty((*lead, packed_bytes(form, columns)), dtype=torch.uint8, device=rows.device)
    scales = torch.empty((*lead, scales_bytes(form, columns)), dtype=torch.uint8, device=rows.device)
    if not rows.numel():
        return Coded(codes, scales)
    height = _height(columns, rows.device)
    parts = (tensor.flatten(0, -2).split(height) for tensor in (rows, codes, scales))
    for part, made, factors in zip(*parts, strict=True):
        coded = _encode(part.float(), form)
        made.copy_(coded.codes)
        factors.copy_(coded.scales)
    return Coded(codes, scales)


def decode(coded: Coded, form: Form, columns: int, *, out: Tensor) -> Tensor:
    """The plain rows (…, columns) in the type of `out`: a flat scratch tensor of `decoded_size`, often their place."""
    lead = coded.codes.shape[:-1]
    codes = coded.codes.reshape(-1, coded.codes.shape[-1])
    scales = coded.scales.reshape(-1, coded.scales.shape[-1])
    if form in ("nf4", "nf4-dq"):
        blocks = _block_scales(scales, form, columns)
        made = _from_nf4(codes, blocks, out[: blocks.numel() * NF4_BLOCK].view(*blocks.shape, NF4_BLOCK))
        return made.view(*lead, -1)[..., :columns]
    made = out[: codes.numel()].view(codes.shape)
    for part, factor, target in _chunks(codes, scales.contiguous().view(torch.float32), made):
        numbers = part.view(torch.int8).float() if form == "int8" else _from_fp8(part)
        target.copy_(numbers.mul_(factor))
    return made.view(*lead, columns)


def decoded_size(n_rows: int, form: Form, columns: int) -> int:
    """Numbers that `decode` writes for so many rows."""
    return n_rows * (n_blocks(columns) * NF4_BLOCK if form in ("nf4", "nf4-dq") else columns)


def rounded(rows: Tensor, form: Form) -> Tensor:
    """rows (…, columns), fp32, with the values that they have once coded: those that an adapter was trained on."""
    columns = rows.shape[-1]
    n_rows = rows.numel() // columns
    out = torch.empty(decoded_size(n_rows, form, columns), device=rows.device)
    return decode(encode(rows, form), form, columns, out=out).contiguous()


# -- 4 bits -----------------------------------------------------------------------------------------------------------
def _encode(rows: Tensor, form: Form) -> Coded:
    """rows (N, columns) fp32."""
    if form in ("nf4", "nf4-dq"):
        return _to_nf4(rows, form)
    largest = rows.abs().amax(-1, keepdim=True)
    scales = largest / (_INT8_MAX if form == "int8" else _FP8_MAX)
    scaled = rows / torch.where(scales == 0, 1.0, scales)
    codes = scaled.round().to(torch.int8) if form == "int8" else scaled.clamp(-_FP8_MAX, _FP8_MAX).to(_FP8)
    return Coded(codes.view(torch.uint8), scales.view(torch.uint8))


def _to_nf4(rows: Tensor, form: Form) -> Coded:
    columns = rows.shape[-1]
    blocks = F.pad(rows, (0, n_blocks(columns) * NF4_BLOCK - columns)).unflatten(-1, (-1, NF4_BLOCK))
    largest = blocks.abs().amax(-1)
    scaled = blocks * (1 / torch.where(largest == 0, 1.0, largest))[..., None]
    pairs = _nearest(scaled).flatten(1).unflatten(-1, (-1, 2))
    packed = (pairs[..., 0] << 4) | pairs[..., 1]  # the first of a pair in the high bits, as bitsandbytes has it
    return Coded(packed, largest.view(torch.uint8) if form == "nf4" else _coded_scales(largest))


def _nearest(scaled: Tensor) -> Tensor:
    """Numbers in [-1, 1] -> the codes of the nearest values of NF4: by the cell of a number, then one comparison."""
    least, border = _cells(scaled.device)
    cells = ((scaled + 1) * (_CELLS // 2)).int().clamp_(max=_CELLS - 1).flatten()
    above = scaled.flatten() > border.index_select(0, cells)
    return (least.index_select(0, cells) + above).view(scaled.shape)


@cache
def _cells(device: torch.device) -> tuple[Tensor, Tensor]:
    """For each cell the code of its lowest number, and where the next code begins."""
    values = torch.tensor(NF4, dtype=torch.float64)
    borders = ((values[1:] + values[:-1]) / 2).float()
    lowest = torch.arange(_CELLS) / (_CELLS // 2) - 1
    codes = torch.bucketize(lowest, borders)
    nexts = torch.cat([borders, torch.tensor([torch.inf])])[codes]
    return codes.to(device, torch.uint8), nexts.to(device)


def _coded_scales(scales: Tensor) -> Tensor:
    """scales (N, blocks) fp32 -> bytes: a code for each, then the least and the step of each group."""
    groups = scales.split(SCALES_BLOCK, dim=-1)
    least = torch.stack([group.amin(-1) for group in groups], dim=-1)
    step = (torch.stack([group.amax(-1) for group in groups], dim=-1) - least) / 255
    divisor = torch.where(step == 0, 1.0, step)
    codes = (scales - _each(least, scales)) / _each(divisor, scales)
    numbers = torch.cat([least, step], dim=-1).view(torch.uint8)
    return torch.cat([codes.round().clamp(0, 255).to(torch.uint8), numbers], dim=-1)


def _each(groups: Tensor, scales: Tensor) -> Tensor:
    """The number of its group for each scale."""
    return groups.repeat_interleave(SCALES_BLOCK, dim=-1)[:, : scales.shape[-1]]


def _block_scales(stored: Tensor, form: Form, columns: int) -> Tensor:
    """Bytes -> scales (N, blocks) fp32."""
    if form == "nf4":
        return stored.contiguous().view(torch.float32)
    codes = stored[:, : n_blocks(columns)].float()
    least, step = stored[:, n_blocks(columns) :].contiguous().view(torch.float32).split(n_groups(columns), dim=-1)
    return codes * _each(step, codes) + _each(least, codes)


def _from_nf4(codes: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """codes (N, bytes), scales (N, blocks) fp32 -> (N, blocks, NF4_BLOCK), in `out` or of its shape and type."""
    if out.numel() and out.dtype in _KERNEL_TYPES and _has_bitsandbytes(out.device):
        kernel = torch.ops.bitsandbytes.dequantize_4bit  # into memory of its own: a copy would cost as much again
        return kernel(codes.contiguous(), scales.flatten(), NF4_BLOCK, "nf4", out.shape, out.dtype)
    pairs = _pairs(out.device)
    for part, factor, target in _chunks(codes, scales, out):
        numbers = pairs.index_select(0, part.reshape(-1).int()).view(torch.float32).view(target.shape)
        if target.dtype == torch.float32:
            torch.mul(numbers, factor[..., None], out=target)
        else:
            target.copy_(numbers.mul_(factor[..., None]))
    return out


def _from_fp8(codes: Tensor) -> Tensor:
    """codes (…) uint8 -> fp32: the bits as those of a half, whose exponent counts from 8 less. 5 times `float` here."""
    bits = (codes.view(torch.int8).short() << 7) & ~(1 << 14)
    return bits.view(torch.float16).float().mul_(2.0**8)


@cache
def _pairs(device: torch.device) -> Tensor:
    """Byte -> its two numbers in fp32, as one element of 8 bytes: one look-up in place of two."""
    values = torch.tensor(NF4)
    numbers = torch.stack([values.repeat_interleave(16), values.repeat(16)], dim=-1)
    return numbers.view(torch.int64).flatten().to(device)


@cache
def _has_bitsandbytes(device: torch.device) -> bool:
    """Whether its kernel runs on such a device and gives the values of the table."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return False
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    scales = torch.linspace(0.5, 2, 512 // NF4_BLOCK, device=device)
    try:
        import bitsandbytes  # noqa: F401  # registers the kernel

        made = torch.ops.bitsandbytes.dequantize_4bit(codes, scales, NF4_BLOCK, "nf4", (1, 512), torch.float32)
    except (ImportError, NotImplementedError, RuntimeError, OSError) as error:
        _LOG.warning("bitsandbytes is installed, but has no nf4 on %s (%s): torch decodes, slower", device, error)
        return False
    expected = _pairs(device).view(torch.float32).view(-1, NF4_BLOCK) * scales[:, None]
    same = torch.equal(made.view(-1, NF4_BLOCK), expected)
    if not same:
        _LOG.warning("bitsandbytes decodes nf4 on %s to other values than its table: torch decodes, slower", device)
    return same


def _chunks(codes: Tensor, scales: Tensor, out: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Some rows of each at once."""
    height = _height(out[:1].numel(), out.device)
    return list(zip(codes.split(height), scales.split(height), out.split(height), strict=True))


def _height(columns: int, device: torch.device) -> int:
    return max(1, _CHUNK.get(device.type, _CHUNK["cuda"]) // max(1, columns))
