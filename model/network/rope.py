"""Rotary position embeddings (Su et al. 2021) in the half-split layout: dimension d turns with d + rope_dim / 2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from launchyard.model.config import ModelConfig, RopeScaling


def frequencies(config: ModelConfig) -> Tensor:
    """Radians a position by which each pair of dimensions turns: (rope_dim / 2), fp32 on the CPU."""
    exponents = torch.arange(0, config.rope_dim, 2, dtype=torch.float32, device="cpu") / config.rope_dim
    plain = 1.0 / (config.rope_theta**exponents)
    return plain if config.rope_scaling is None else _scale(plain, config.rope_scaling)


def tables(config: ModelConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 … length - 1, each (length, rope_dim / 2), fp32.

    Made on the CPU, so that every device turns by the very same numbers.
    """
    with torch.inference_mode(False), torch.no_grad():  # they outlive the forward, and training may need them next
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device="cpu"), frequencies(config))
        return angles.cos().to(device), angles.sin().to(device)


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


def _scale(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: slow turns are slowed by `factor`, fast ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    low = scaling.low_freq_factor
    high = scaling.high_freq_factor
    keep = ((scaling.original_max_seq_len / wavelength - low) / (high - low)).clamp(0, 1)
    return keep * plain + (1 - keep) * plain / scaling.factor
