"""The most operations per second that a device could do, for MFU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Dense operations per second in bf16, of the maker's data sheets; the first name that a device's name holds counts.
PEAK_FLOPS = (
    ("GB200", 2.5e15),
    ("B200", 2.25e15),
    ("H200", 989.4e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989.4e12),
    ("H800", 989.4e12),
    ("GH200", 989.4e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("A10G", 70e12),
    ("A40", 149.7e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71e12),
    ("V100", 125e12),
)


@dataclass(frozen=True)
class Flops:
    """Operations that a token takes, and the most a second that all devices could do, if that is known."""

    per_token: float
    peak: float | None


def peak_flops(device_name: str) -> float | None:
    """Peak operations per second of a device; None if it is not known."""
    return next((peak for name, peak in PEAK_FLOPS if name.lower() in device_name.lower()), None)


def peak_of(device: torch.device, chosen: float | None, world_size: int) -> float | None:
    """Operations per second of all devices: from the recipe, else from the table of GPUs; None if neither."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    one = chosen or (peak_flops(name) if name else None)
    return None if one is None else one * world_size
