"""Tensors between the host and a GPU without a wait of the host. Knows no model and no step."""

from __future__ import annotations

import torch
from torch import Tensor

WITHOUT_FP64 = {"mps"}  # kinds of devices


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on a GPU of a tensor of the host, which goes on at once; on a CPU the tensor itself.

    From pageable memory `.to` waits for all that the GPU has to do before, so it goes by way of pinned memory, which
    torch keeps for the next one.
    """
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    if device.type == "cuda" and torch.cuda.is_available() and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def in_fp64(values: Tensor) -> Tensor:
    """The values in fp64 where they are; those of Apple's GPUs, which have no such numbers, on the host."""
    return values.to(device_of_fp64(values.device), torch.float64)


def device_of_fp64(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type in WITHOUT_FP64 else device


class ReadBack:
    """Numbers on their way to the host. Whoever reads them waits for what the GPU had to do when they set out, and not
    for what it has been told since."""

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))

    def numbers(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        found: list[float] = self._values.tolist()
        return found
