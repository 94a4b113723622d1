"""The probe of this machine's devices: prints one line of JSON. `launch doctor` runs it in a process of its own.

It alone of the doctor loads torch, and asks GPUs by torch's own interface: NVIDIA, AMD's ROCm and Apple's MPS.
"""

from __future__ import annotations

import contextlib
import json
import platform
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

from launchyard.host.inventory import driver_version
from launchyard.storage.damage import JsonObject


def main() -> int:
    try:
        found = look(import_module("torch"))
    except ImportError:
        found = {"torch": None, "devices": []}
    print(json.dumps({**found, "driver": driver_version()}), flush=True)
    return 0


def look(torch: ModuleType) -> JsonObject:
    """Versions, and the GPUs that torch can use."""
    return {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "rocm": getattr(torch.version, "hip", None),
        "devices": [*_gpus(torch), *_apple(torch)],
    }


def _gpus(torch: ModuleType) -> Iterator[JsonObject]:
    """Those of NVIDIA; torch calls those of AMD by the same names."""
    if not torch.cuda.is_available():
        return
    kind = "rocm" if getattr(torch.version, "hip", None) else "nvidia"
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free = None
        with contextlib.suppress(RuntimeError):  # no room even to ask
            free = int(torch.cuda.mem_get_info(number)[0])
        name = str(properties.name)
        yield {"kind": kind, "name": name, "memory": int(properties.total_memory), "free": free}


def _apple(torch: ModuleType) -> Iterator[JsonObject]:
    mps = getattr(torch.backends, "mps", None)
    if mps is None or not mps.is_available():
        return
    most = int(torch.mps.recommended_max_memory())
    free = most - int(torch.mps.driver_allocated_memory())
    yield {"kind": "mps", "name": f"Apple GPU ({platform.machine()})", "memory": most, "free": free}


if __name__ == "__main__":
    sys.exit(main())
