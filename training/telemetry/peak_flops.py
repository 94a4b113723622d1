"""Operations of the model in a step, and the most per second that a device could do, for MFU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from launchyard.model.devices import peak_flops


@dataclass(frozen=True)
class Flops:
    """Operations of a step's tokens, and the most a second that all devices could do, if that is known."""

    per_token: float  # without the head, which sees labels alone
    per_label: float
    peak: float | None

    def of(self, tokens: int, labels: int) -> float:
        return self.per_token * tokens + self.per_label * labels


def peak_of(device: torch.device, chosen: float | None, world_size: int) -> float | None:
    """Operations per second of all devices: from the recipe, else from the table of GPUs; None if neither."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    one = chosen or (peak_flops(name) if name else None)
    return None if one is None else one * world_size
