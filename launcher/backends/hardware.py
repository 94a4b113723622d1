"""The hardware of this machine: cores, memory, GPUs. Asked once, passed on as a value; imports no torch."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from launchyard.errors import LaunchError
from launchyard.host.folders import log_folder
from launchyard.host.processes import python_argv
from launchyard.launcher.agent.torchrun import installed_flags
from launchyard.launcher.backends.base import load_backend
from launchyard.launcher.backends.calibrations import known_calibrations
from launchyard.model.speed import Calibration

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster
    from launchyard.training.recipe import Recipe

CUTS_BYTES_SINCE = (2, 12)  # torch: before, FSDP makes a parameter that wants a gradient of every one
_DRIVER_MARKS = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")
# Asks the driver in a process of its own, so that the answer is the same as torch's: with
# CUDA_VISIBLE_DEVICES and MIG taken into account, and without a CUDA context in the launcher.
_ASK_DRIVER = """
import ctypes, json
cuda = ctypes.CDLL("libcuda.so.1")
found, code, count = [], cuda.cuInit(0), ctypes.c_int()
if code == 0:
    code = cuda.cuDeviceGetCount(ctypes.byref(count))
for ordinal in range(count.value):
    device, size, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(100)
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    cuda.cuDeviceGetName(name, 100, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    found.append({"name": name.value.decode(), "memory": size.value, "capability": [major.value, minor.value]})
print(json.dumps({"code": code, "gpus": found}))
"""
LEAST_MARGIN_BYTES = 512 << 20
MARGIN = 0.05  # of all memory
# AMD's GPUs, which torch calls by the names of NVIDIA's. Untried: nobody has run this product on one. Their features
# are not those of NVIDIA's numbers, so they count as the first that has bf16.
_ROCM_MARK = "/dev/kfd"
_ASK_TORCH = """
import json, torch
found = []
if torch.version.hip and torch.cuda.is_available():
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found.append({"name": properties.name, "memory": properties.total_memory, "capability": [8, 0], "rocm": True})
print(json.dumps({"code": 0, "gpus": found}))
"""
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE: also the answer to CUDA_VISIBLE_DEVICES=""


class Gpu(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    memory: int
    capability: tuple[int, int]
    rocm: bool = False


class HostFacts(BaseModel):
    """One machine. `memory` in bytes; `gpus` are those a process of ours may use."""

    model_config = ConfigDict(frozen=True)

    cpus: int
    memory: int
    gpus: tuple[Gpu, ...] = ()
    python: str
    cpu_bf16: bool = False
    has_mps: bool = Field(default=False, description="A Mac with Apple's processor, whose GPU torch calls mps.")
    has_torchao: bool = False
    old_torch: str = Field(default="", description="A version of torch that cuts no parameters of bytes, if it is one.")
    torchrun_flags: tuple[str, ...] = ()
    calibrations: tuple[Calibration, ...] = Field(default=(), description="Measured speeds of this machine.")
    node_cpus: int | None = Field(default=None, description="Of a node, by its scheduler.")
    note: str = Field(default="", description="On that number, for people.")
    logs: str = Field(default="", description="Folder for jobs' own output where the run directory is remote.")
    free_bytes: int | None = Field(
        default=None, description="Room for checkpoints where a local run directory goes; None: not known."
    )


def probe_hardware(recipe: Recipe, cluster: Cluster) -> HostFacts:
    """Probes what a plan needs to know of the hardware: this machine, and the nodes of a scheduler."""
    backend = load_backend(cluster.scheduler)
    asked = recipe.resources.gpus_per_node
    wanted = 0 if recipe.train.device == "cpu" else asked
    host = probe_host(gpus=wanted != 0 and not backend.TRAITS.scheduled)
    cpus, note = backend.node_cpus(cluster, (cluster.node.gpus or 0) if wanted is None else wanted)
    return host.model_copy(update={"node_cpus": cpus, "note": note})


def probe_host(*, gpus: bool = True) -> HostFacts:
    """Probes this machine; `gpus=False` leaves the driver alone. LaunchError if there is a driver but no answer."""
    return HostFacts(
        cpus=_count_cpus(),
        memory=_count_memory(),
        gpus=_ask_for_gpus() if gpus else (),
        python=sys.executable,
        has_mps=(platform.system(), platform.machine()) == ("Darwin", "arm64"),
        cpu_bf16="amx_bf16" in _read("/proc/cpuinfo"),
        has_torchao=find_spec("torchao") is not None,
        old_torch=_old_torch(),
        torchrun_flags=tuple(sorted(installed_flags())),
        calibrations=known_calibrations(),
        logs=log_folder(),
    )


def _old_torch() -> str:
    try:
        found = version("torch")
    except PackageNotFoundError:  # the nodes' is not known
        return ""
    return found if tuple(map(int, found.split(".")[:2])) < CUTS_BYTES_SINCE else ""


def free_bytes(folder: str) -> int | None:
    """Bytes that a user may still write into a folder that may not exist yet; None if that is not known."""
    there = next((path for path in (Path(folder), *Path(folder).parents) if path.is_dir()), None)
    try:
        room = None if there is None else shutil.disk_usage(there)
    except OSError:
        return None
    return room.free if room is not None and room.total else None  # /proc, and file systems that do not count


def _count_cpus() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group (v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _count_memory() -> int:
    import psutil

    total = int(psutil.virtual_memory().total)
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def free_memory() -> int:
    """Bytes that processes of ours may still take here, with a margin left to the machine."""
    import psutil

    return max(0, machine_free() - max(LEAST_MARGIN_BYTES, int(MARGIN * psutil.virtual_memory().total)))


def machine_free() -> int:
    """Bytes that are free here, or given back when asked for; no more than our control group has left."""
    import psutil

    limit = _read("/sys/fs/cgroup/memory.max").strip()
    used = _read("/sys/fs/cgroup/memory.current").strip()
    free = int(psutil.virtual_memory().available)
    if limit.isdigit() and used.isdigit():
        lines = [line.split() for line in _read("/sys/fs/cgroup/memory.stat").splitlines()]
        cached = sum(int(amount) for name, amount in lines if name == "inactive_file")  # given back when asked for
        free = min(free, int(limit) - int(used) + cached)
    return max(0, free)


def _ask_for_gpus() -> tuple[Gpu, ...]:
    if any(os.path.exists(mark) for mark in _DRIVER_MARKS):
        return _gpus_told_by([sys.executable, "-I", "-S", "-c", _ASK_DRIVER], "NVIDIA driver", "nvidia-smi")
    if os.path.exists(_ROCM_MARK) and find_spec("torch") is not None:
        return _gpus_told_by([*python_argv(sys.executable), "-c", _ASK_TORCH], "ROCm of torch", "rocm-smi")
    return ()


def _gpus_told_by(argv: list[str], who: str, tool: str) -> tuple[Gpu, ...]:
    hint = f"see whether {tool} works; train.device=cpu trains without the GPUs"
    try:
        done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=60, text=True)
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"the {who} of this machine does not answer within 60 s", hint=hint) from error
    if done.returncode:
        if "libcuda.so.1" in done.stderr:  # a GPU node's kernel module, seen from a container without its libraries
            return ()
        raise LaunchError(f"asking the {who} failed: {done.stderr.strip()[-300:]}", hint=hint)
    answer = json.loads(done.stdout)
    if answer["code"] not in (0, _NO_DEVICE):
        raise LaunchError(f"the {who} of this machine answers with error {answer['code']}", hint=hint)
    return tuple(Gpu.model_validate(gpu) for gpu in answer["gpus"])


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
