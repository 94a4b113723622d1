"""Rotary position embeddings (Su et al. 2021) in the half-split layout: dimension d turns with d + rope_dim / 2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from launchyard.model.config import ModelConfig, RopeScaling
from launchyard.model.network.transfers import sent


def frequencies(config: ModelConfig, length: int, *, windowed: bool = False) -> Tensor:
    """Radians a position by which each pair of dimensions turns: (rope_dim / 2), fp32 on the CPU.

    length: positions of the longest sequence, which two kinds of scaling depend on. windowed: of layers that see a
    window, where they have a base of their own.
    """
    exponents = torch.arange(0, config.rope_dim, 2, dtype=torch.float32, device="cpu") / config.rope_dim
    own = config.window_rope_theta if windowed else None
    plain = 1.0 / ((config.rope_theta if own is None else own) ** exponents)
    scaling = config.rope_scaling
    if scaling is None or own is not None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "dynamic":
        return _dynamic(config, scaling, length, exponents)
    if scaling.kind == "longrope":
        divisors = scaling.long_factor if is_long(config, length) else scaling.short_factor
        return plain / torch.tensor(divisors, dtype=torch.float32, device="cpu")
    return _llama3(plain, scaling) if scaling.kind == "llama3" else _yarn(config, scaling, plain)


def magnitude(config: ModelConfig, *, windowed: bool = False) -> float:
    """What multiplies cosines and sines: yarn and longrope sharpen the attention of a longer context by it."""
    scaling = config.rope_scaling
    if scaling is None or (windowed and config.window_rope_theta is not None):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.kind == "longrope":
        assert scaling.original_max_seq_len is not None
        factor = max(1.0, scaling.factor)
        return math.sqrt(1 + math.log(factor) / math.log(scaling.original_max_seq_len))
    if scaling.kind != "yarn":
        return 1.0
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_gain(scaling.factor, scaling.mscale) / yarn_gain(scaling.factor, scaling.mscale_all_dim)
    return yarn_gain(scaling.factor, 1.0)


def yarn_gain(factor: float, weight: float) -> float:
    """0.1 w ln(factor) + 1 (Peng et al. 2023, section 3.4)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def is_long(config: ModelConfig, length: int) -> bool:
    """True for a sequence that is longer than the context before the stretch."""
    scaling = config.rope_scaling
    return scaling is not None and scaling.original_max_seq_len is not None and length > scaling.original_max_seq_len


def tables(
    config: ModelConfig, length: int, device: torch.device, *, windowed: bool = False, longest: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 … length - 1, each (length, rope_dim / 2), fp32.

    longest: as `length` of `frequencies`; default: length. Made on the CPU, so that every device turns by the very same
    numbers.
    """
    with torch.inference_mode(False), torch.no_grad():  # they outlive the forward, and training may need them next
        turns = frequencies(config, longest or length, windowed=windowed)
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device="cpu"), turns)
        gain = magnitude(config, windowed=windowed)
        cos, sin = (angles.cos(), angles.sin()) if gain == 1.0 else (angles.cos() * gain, angles.sin() * gain)
        return sent(cos, device), sent(sin, device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first dimensions of each head. x (B, T, H, head_dim); cos, sin (T or B, T; rope_dim / 2), fp32.

    The products are fp32 whatever x is, since the tables are.
    """
    half = cos.shape[-1]
    cos = cos.unsqueeze(-2)  # one more axis: the heads
    sin = sin.unsqueeze(-2)
    first = x[..., :half]
    second = x[..., half : 2 * half]
    turned = (first * cos - second * sin).to(x.dtype), (second * cos + first * sin).to(x.dtype)
    return torch.cat(turned if 2 * half == x.shape[-1] else (*turned, x[..., 2 * half :]), dim=-1)


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: slow turns are slowed by `factor`, fast ones kept, those between blended."""
    assert scaling.original_max_seq_len and scaling.low_freq_factor and scaling.high_freq_factor
    wavelength = 2 * math.pi / plain
    low = scaling.low_freq_factor
    high = scaling.high_freq_factor
    keep = ((scaling.original_max_seq_len / wavelength - low) / (high - low)).clamp(0, 1)
    return keep * plain + (1 - keep) * plain / scaling.factor


def _dynamic(config: ModelConfig, scaling: RopeScaling, length: int, exponents: Tensor) -> Tensor:
    """NTK-aware: the base grows with the sequence once it is longer than the old context."""
    assert scaling.original_max_seq_len is not None
    dim = config.rope_dim
    longer = max(length, scaling.original_max_seq_len) / scaling.original_max_seq_len
    base = config.rope_theta * (scaling.factor * longer - (scaling.factor - 1)) ** (dim / (dim - 2))
    return 1.0 / (base**exponents)


def _yarn(config: ModelConfig, scaling: RopeScaling, plain: Tensor) -> Tensor:
    """Peng et al. 2023, section 3.2: a dimension is kept or stretched by how often it turns in the old context."""
    dim = config.rope_dim

    def dimension(turns: float) -> float:
        assert scaling.original_max_seq_len is not None
        length = scaling.original_max_seq_len / (turns * 2 * math.pi)
        return dim * math.log(length) / (2 * math.log(config.rope_theta))

    low = dimension(scaling.beta_fast)
    high = dimension(scaling.beta_slow)
    if scaling.truncate:
        low = math.floor(low)
        high = math.ceil(high)
    low = max(low, 0)
    high = min(high, dim - 1)
    places = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    stretch = ((places - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    return plain / scaling.factor * stretch + plain * (1 - stretch)
