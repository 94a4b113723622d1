"""Kinds of devices that a worker trains on, by torch's names. Knows no machine and imports no torch."""

from __future__ import annotations

from typing import Literal, get_args

Device = Literal["cpu", "cuda", "mps"]  # AMD's GPUs are cuda too
DEVICES: tuple[str, ...] = get_args(Device)
