"""Peak operations per second of devices, for MFU and for the length of a run. Light data."""

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


def peak_flops(device_name: str) -> float | None:
    """Peak operations per second of a device; None if it is not known."""
    return next((peak for name, peak in PEAK_FLOPS if name.lower() in device_name.lower()), None)
