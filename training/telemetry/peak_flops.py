"""The most operations per second that a device could do, for MFU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from launchyard.model.devices import peak_flops


@dataclass(frozen=True)
class Flops:
    """Operations that a token takes, and the most a second that all devices could do, if that is known."""

    per_token: float
    peak: float | None


def peak_of(device: torch.device, chosen: float | None, world_size: int) -> float | None:
    """Operations per second of all devices: from the recipe, else from the table of GPUs; None if neither."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    one = chosen or (peak_flops(name) if name else None)
    return None if one is None else one * world_size
