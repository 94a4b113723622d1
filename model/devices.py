"""The most that devices do in a second: operations, for MFU and times of runs, and bytes of memory. Light data."""

from __future__ import annotations

# Dense operations per second in bf16 (V100: fp16), of the makers' data sheets, where those with sparsity are twice as
# many. The first name that a device's name holds counts.
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

# Part of a GPU's peak that training reaches, as a guess.
REACHED = 0.35

# Bytes per second of their memory, of the same sheets. Writing one text is as fast as all weights are read.
PEAK_BYTES = (
    ("GB200", 8.0e12),
    ("B200", 8.0e12),
    ("GH200", 4.0e12),
    ("H200", 4.8e12),
    ("H100 PCIe", 2.0e12),
    ("H100 NVL", 3.9e12),
    ("H100", 3.35e12),
    ("H800", 3.35e12),
    ("A100-SXM4-40GB", 1.555e12),
    ("A100-PCIE-40GB", 1.555e12),
    ("A100 80GB PCIe", 1.935e12),
    ("A100", 2.039e12),
    ("A800", 2.039e12),
    ("A10G", 600e9),
    ("A40", 696e9),
    ("L40S", 864e9),
    ("L40", 864e9),
    ("L4", 300e9),
    ("RTX 4090", 1.008e12),
    ("RTX 3090", 936e9),
    ("V100", 900e9),
)


def peak_flops(device_name: str) -> float | None:
    """Peak operations per second of a device; None if it is not known."""
    return _of(PEAK_FLOPS, device_name)


def peak_bytes(device_name: str) -> float | None:
    """Peak bytes per second of the memory of a device; None if it is not known."""
    return _of(PEAK_BYTES, device_name)


def _of(table: tuple[tuple[str, float], ...], device_name: str) -> float | None:
    return next((peak for name, peak in table if name.lower() in device_name.lower()), None)
